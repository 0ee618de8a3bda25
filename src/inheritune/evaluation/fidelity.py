"""Measure how close a target's predictions are to its reference's, on every validation window.

B windows per forward, T tokens per window, V vocabulary. p: the reference's distribution over the
next token, q: the target's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inheritune.data.tokens import TokenStream
from inheritune.errors import DataError
from inheritune.evaluation.val_loss import count_windows, standard_error
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.kl_divergence import token_divergence
from inheritune.training.lazy_logits import LazyLogits, lazy_logits
from inheritune.training.loss import logits_are_plain_head_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Predict = Callable[[Tensor], LazyLogits]


@dataclass(frozen=True)
class Fidelity:
    """How close predictions are, as means over tokens with standard errors over windows.

    Attributes:
        kl: KL(p || q), nats per token; 0 where the two predict the same.
        kl_se: Its standard error; None for a single window, as those below.
        top1: Share of tokens at which both think the same token the likeliest, in [0, 1].
        top1_se: Its standard error.
        overlap: sum of min(p, q), in [0, 1]: the share of tokens of a text drawn from the target
            that speculative decoding would keep.
        overlap_se: Its standard error.
        windows: Number of windows.
        tokens: Number of predicted tokens.
    """

    kl: float
    kl_se: float | None
    top1: float
    top1_se: float | None
    overlap: float
    overlap_se: float | None
    windows: int
    tokens: int


def measure_fidelity(
    reference: "PreTrainedModel",
    target: "PreTrainedModel",
    stream: TokenStream,
    seq_len: int,
    batch_size: int,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
) -> Fidelity:
    """Compare the predictions of two models for every token of a validation set.

    Where logits are the head's product and nothing more, they are made for a few tokens at a time,
    and (B, T, V) is never held.

    Args:
        reference: Left in evaluation mode, as the target; both on the same device.
        stream: Validation tokens.
        seq_len: T, tokens per window.
        batch_size: B.

    Raises:
        DataError: There is less than one window, or the models predict different numbers of ids.
        Interrupted: ``stop`` was set.
    """
    windows = count_windows(stream, seq_len)
    predictions = (_predictions_of(reference), _predictions_of(target))
    means = np.empty((windows, 3))
    with torch.no_grad():
        for first in range(0, windows, batch_size):
            last = min(first + batch_size, windows)
            ids = torch.from_numpy(stream.samples(np.arange(first, last), seq_len))
            inputs = ids[:, :-1].to(reference.device)
            means[first:last] = _window_means(*predictions, inputs)
            on_progress(Progress("fidelity", last, windows, "windows"))
            if stop is not None:
                stop.check("fidelity is measured again")
    (kl, top1, overlap), errors = means.mean(0).tolist(), map(_standard_error, means.T)
    kl_se, top1_se, overlap_se = errors
    return Fidelity(
        kl, kl_se, top1, top1_se, overlap, overlap_se, windows=windows, tokens=windows * seq_len
    )


def _predictions_of(model: "PreTrainedModel") -> _Predict:
    avoids_logits = logits_are_plain_head_output(model.eval())
    return partial(lazy_logits, model, avoids_logits=avoids_logits)


def _window_means(reference: _Predict, target: _Predict, input_ids: Tensor) -> NDArray[np.float64]:
    """KL divergence, agreement and overlap of B windows, means over their tokens: (B, 3)."""
    ours, theirs = reference(input_ids).cast(), target(input_ids).cast()
    parts = []
    for part in ours.chunks():
        z_p, z_q = ours.rows(part), theirs.rows(part)  # (n, V)
        if z_p.shape != z_q.shape:
            raise DataError(
                f"the reference predicts {z_p.shape[1]} ids, the target {z_q.shape[1]}.",
                "Compare models with the same vocabulary.",
            )
        parts.append(token_fidelity(z_p, z_q))
    return torch.cat(parts).view(*input_ids.shape, 3).double().mean(1).cpu().numpy()


def token_fidelity(z_p: Tensor, z_q: Tensor) -> Tensor:
    """Compare distributions that are given by logits.

    Args:
        z_p: The reference's logits, (n, V).
        z_q: The target's, (n, V).

    Returns:
        KL(p || q) in nats, 1 where the likeliest id is the same, and sum of min(p, q): (n, 3) fp32.
    """
    log_p, log_q = z_p.float().log_softmax(-1), z_q.float().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    kl = token_divergence(log_p, p, log_q)
    agrees = z_p.argmax(-1) == z_q.argmax(-1)
    # sum_v min(p_v, q_v) = 1 - (1 / 2) sum_v |p_v - q_v|
    overlap = torch.minimum(p, q).sum(-1)
    return torch.stack((kl, agrees.float(), overlap), dim=-1)


def _standard_error(values: NDArray[np.float64]) -> float | None:
    error = standard_error(values)
    return error if math.isfinite(error) else None
