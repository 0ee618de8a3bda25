"""Measure val_loss, the number that decides a match, of reference and target alike.

B windows per forward, T tokens per window, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from inheritune.data.tokens import TokenStream
from inheritune.errors import DataError
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ValLoss:
    """Loss on a fixed validation set."""

    per_window: NDArray[np.float64]  # mean nats per token of each window, (windows,), in order
    tokens: int  # number of predicted tokens

    @property
    def mean(self) -> float:
        """Nats per token; every window has as many tokens."""
        return float(self.per_window.mean())

    @property
    def se(self) -> float:
        """Standard error of the mean over windows; NaN for a single window."""
        return standard_error(self.per_window)


def count_windows(stream: TokenStream, seq_len: int) -> int:
    """Count the validation windows of a length.

    Raises:
        DataError: There is less than one window of tokens.
    """
    windows = stream.num_samples(seq_len)
    if windows < 1:
        raise DataError(
            f"the validation set has {stream.num_ids} tokens, one window needs {seq_len + 1}.",
            "Give more text, hold out more of it (data.val_fraction), or take shorter windows "
            "(train.seq_len, --seq-len).",
        )
    return windows


def measure_val_loss(
    model: "PreTrainedModel",
    stream: TokenStream,
    seq_len: int,
    batch_size: int,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "validation",
    processes: Processes = ALONE,
) -> ValLoss:
    """Measure the cross-entropy of a model on every window of a validation set, in fp32.

    It is computed from the model's own logits, which makes it an independent check of the training
    loss: mean over windows of (1 / T) sum_t -log softmax(logits_t)[x_{t+1}].

    Args:
        model: A causal language model with fp32 weights; left in evaluation mode.
        seq_len: T, tokens per window.
        batch_size: B, windows per forward; the same for all models, since rounding depends on it.
        processes: Processes that share the batches. All of them get the same result, which does
            not depend on their number.

    Raises:
        DataError: There is less than one window of tokens.
        Interrupted: ``stop`` was set.
    """
    windows = count_windows(stream, seq_len)
    model.eval()
    losses = torch.zeros(windows, dtype=torch.float64)
    batches = range(0, windows, batch_size)
    with torch.no_grad():
        for turn in range(0, len(batches), processes.size):
            index = turn + processes.rank
            # A process without a batch left repeats the last one: a sharded model needs the same
            # number of forwards in every process.
            first = batches[min(index, len(batches) - 1)]
            values = _window_losses(model, stream, first, min(first + batch_size, windows), seq_len)
            if index < len(batches):
                losses[first : first + len(values)] = torch.tensor(values, dtype=torch.float64)
            done = min(batches[min(turn + processes.size, len(batches)) - 1] + batch_size, windows)
            on_progress(Progress(task, done, windows, "windows"))
            if stop is not None:
                signals = processes.add_up(torch.tensor([float(stop())], dtype=torch.float64))
                stop.heed(bool(signals))
                stop.check(f"{task} is measured again")
    return ValLoss(processes.add_up(losses).numpy(), windows * seq_len)


def _window_losses(
    model: "PreTrainedModel", stream: TokenStream, first: int, last: int, seq_len: int
) -> list[float]:
    """Compute mean nats per token of the windows [first, last)."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(stream.samples(np.arange(first, last), seq_len)).to(device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T, V)
    return [
        float(F.cross_entropy(scores.float(), targets, reduction="sum")) / seq_len
        for scores, targets in zip(logits, ids[:, 1:], strict=True)
    ]


def paired_difference(
    target: NDArray[np.float64], reference: NDArray[np.float64]
) -> tuple[float, float]:
    """Compute mean and standard error of target - reference over the same windows.

    Pairing removes what makes a window hard for both, so the difference has a far smaller error
    than either loss.
    """
    difference = target - reference
    return float(difference.mean()), standard_error(difference)


def standard_error(values: NDArray[np.float64]) -> float:
    """Compute the standard error of a mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))
