"""Measure how far the hidden state moves from each layer to each later one.

N layers, B sequences, T tokens, D hidden. State 0 is the input of the first layer, state i + 1 the
output of layer i.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.layers import find_layers, watched_by

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


_BATCH = 16  # sequences per forward
_CHUNK = 2**22  # values that are compared at a time: 32 MiB in fp64
_LEAST_NORM = 1e-8


@dataclass(frozen=True)
class Distances:
    """Distances between hidden states, means over tokens; NaN where a layer was not run."""

    cosines: NDArray[np.float64]  # of every two states, (N + 1, N + 1)
    angles: NDArray[np.float64]  # arccos(cosine) / pi of every two states, in [0, 1]
    norm_ratios: NDArray[np.float64]  # norm of each layer's output over that of its input, (N,)

    @property
    def influence(self) -> NDArray[np.float64]:
        """1 - cosine of each layer's input and output, in [0, 2], (N,)."""
        return 1 - self.cosines.diagonal(1)


def measure_distances(
    model: "PreTrainedModel",
    total: int,
    ids: NDArray[np.int64],
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "distances of layers",
) -> Distances:
    """Run a model once over sequences, and compare the states of every token in fp64.

    Args:
        model: Left in evaluation mode.
        total: N, its number of layers.
        ids: Token ids, one sequence a row.

    Raises:
        UnsupportedModelError: The model has no list of so many layers.
        Interrupted: ``stop`` was set.

    Sources: influence, Men et al., ShortGPT, arXiv 2403.03853; angle, Gromov et al., arXiv
    2403.17887, here over all tokens; ratio of norms, Ministral 3, arXiv 2601.08584.
    """
    layers = find_layers(model, total)
    model.eval()
    states: dict[int, Tensor] = {}
    cosines, angles = np.zeros((2, total + 1, total + 1))
    ratios, tokens = np.zeros(total), 0

    def before(layer: int, hidden: "Tensor") -> None:
        if not layer:
            states[0] = hidden.clone()  # layers may add to it in place

    def after(layer: int, hidden: "Tensor") -> None:
        states[layer + 1] = hidden.clone()

    with torch.no_grad(), watched_by(layers, before, after):
        for first in range(0, len(ids), _BATCH):
            if stop is not None:
                stop.check(f"the measurement of {task} is made again")
            batch = torch.from_numpy(ids[first : first + _BATCH]).to(model.device)
            states.clear()
            model(input_ids=batch, use_cache=False)
            done = min(first + _BATCH, len(ids))
            on_progress(Progress(task, done, len(ids), "sequences"))
            rows = _rows(states, total)
            tokens += len(rows[0])
            # cos(h_i, h_j) of every two states of a token, a few tokens at a time
            each = max(1, _CHUNK // ((total + 1) * rows[0].shape[1]))
            for start in range(0, len(rows[0]), each):
                part = [row[start : start + each] for row in rows]
                stacked = torch.stack(part, dim=1).double()  # (n, N + 1, D)
                norms = stacked.norm(dim=-1).clamp(min=_LEAST_NORM)
                unit = stacked / norms[..., None]
                cosine = (unit @ unit.mT).clamp(-1, 1)
                cosines += cosine.sum(0).cpu().numpy()
                angles += cosine.arccos().sum(0).cpu().numpy() / math.pi
                ratios += (norms[:, 1:] / norms[:, :-1]).sum(0).cpu().numpy()
    return Distances(cosines / tokens, angles / tokens, ratios / tokens)


def _rows(states: "dict[int, Tensor]", total: int) -> "list[Tensor]":
    """List all states, (B * T, D) each; those of a layer that was not run are NaN."""
    some = next(iter(states.values()))
    missing = partial(torch.full_like, some, math.nan)
    return [(states[i] if i in states else missing()).flatten(0, -2) for i in range(total + 1)]
