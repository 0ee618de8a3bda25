"""Measure how much each layer changes its input, and what removing the layer costs.

N sequences, T tokens, D hidden, L layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from inheritune.run_record.fields import finite_number
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.layers import find_layers, watched_by

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


_BATCH = 16  # sequences per forward


@dataclass(frozen=True)
class LayerImportance:
    """The importance of one layer; a field is None where it could not be measured."""

    layer: int  # position from the input, from 0
    influence: float | None  # 1 - cosine(input, output), mean over tokens, in [0, 2]
    angle: float | None  # arccos(cosine) / pi, mean over tokens, in [0, 1]
    # Rise of the loss when the layer is skipped, nats per token; None if not measured, too.
    removal_loss: float | None


@dataclass(frozen=True)
class Importance:
    """The importance of all layers."""

    # Nats per token with all layers, on the sequences that removal was measured on.
    loss: float | None
    sequences: int  # number of those sequences
    layers: list[LayerImportance]  # from the input on


def measure_importance(
    model: "PreTrainedModel",
    total: int,
    ids: NDArray[np.int64],
    removal_sequences: int = 20,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "importance",
) -> Importance:
    """Measure influence and angle of every layer, and the loss without it.

    Args:
        model: A causal language model in fp32; left in evaluation mode.
        total: L, its number of layers.
        ids: Token ids, (N, T).
        removal_sequences: Number of first sequences to measure the losses on, in L + 1 passes; 0:
            leave the losses out.

    Raises:
        UnsupportedModelError: The model has no list of so many layers.
        Interrupted: ``stop`` was set.

    Sources: influence, Men et al., ShortGPT, arXiv 2403.03853; angle, Gromov et al., arXiv
    2403.17887, here over all tokens.
    """
    # --- influence: one pass over all sequences ---
    layers = find_layers(model, total)
    model.eval()
    cosines = _Cosines(total)
    passes = _Passes(model, stop, on_progress, task, total + 2 if removal_sequences else 1)
    with watched_by(layers, cosines.before, cosines.after):
        passes.over(ids, losses=False)

    # --- removal: a pass with all layers, then one without each; few sequences, since L + 1 passes
    few = ids[:removal_sequences]
    loss: float | None = None
    without: list[float | None] = [None] * total
    if len(few):
        loss = passes.over(few)
        without = [_loss_without(layers, number, passes, few) for number in range(total)]
    return Importance(
        loss=loss,
        sequences=len(few),
        layers=[
            LayerImportance(
                layer=number,
                influence=None if cosine is None else 1 - cosine,
                angle=angle,
                removal_loss=_difference(without[number], loss),
            )
            for number, (cosine, angle) in enumerate(cosines.means())
        ],
    )


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _loss_without(
    layers: Sequence[nn.Module], number: int, passes: "_Passes", ids: NDArray[np.int64]
) -> float | None:
    """Compute the loss when the output of one layer is replaced by its input."""
    inputs: dict[int, Tensor] = {}
    with watched_by(layers, inputs.__setitem__, lambda layer, _: inputs.pop(layer), only=number):
        return passes.over(ids)


class _Passes:
    """Runs a model over sequences, and counts the passes."""

    def __init__(
        self,
        model: "PreTrainedModel",
        stop: StopFlag | None,
        on_progress: Listener,
        task: str,
        total: int,
    ) -> None:
        self._model, self._stop, self._on_progress = model, stop, on_progress
        self._task, self._total, self._done = task, total, 0

    def over(self, ids: NDArray[np.int64], losses: bool = True) -> float | None:
        """Run one pass; return nats per token, None without ``losses`` or if not finite."""
        device, nats = next(self._model.parameters()).device, 0.0
        for first in range(0, len(ids), _BATCH):
            if self._stop is not None:
                self._stop.check(f"{self._task} is measured again")
            batch = torch.from_numpy(ids[first : first + _BATCH]).to(device)
            with torch.no_grad():
                logits = self._model(input_ids=batch, use_cache=False).logits  # (B, T, V)
                if losses:
                    scores = logits[:, :-1].float().flatten(0, 1)
                    nats += float(F.cross_entropy(scores, batch[:, 1:].flatten(), reduction="sum"))
        self._done += 1
        self._on_progress(Progress(self._task, self._done, self._total, "passes"))
        mean = nats / (len(ids) * (ids.shape[1] - 1))
        return mean if losses and math.isfinite(mean) else None


class _Cosines:
    """Sums of cosine and angle between the input and the output of each layer."""

    def __init__(self, total: int) -> None:
        self._sums = np.zeros((total, 3))
        self._inputs: dict[int, Tensor] = {}

    def before(self, layer: int, hidden: "Tensor") -> None:
        self._inputs[layer] = hidden.detach().clone()  # layers may add to it in place

    def after(self, layer: int, hidden: "Tensor") -> None:
        cosine = F.cosine_similarity(self._inputs.pop(layer).double(), hidden.double(), dim=-1)
        cosine = cosine.clamp(-1, 1)
        angle = cosine.arccos() / math.pi
        self._sums[layer] += (float(cosine.sum()), float(angle.sum()), cosine.numel())

    def means(self) -> list[tuple[float | None, float | None]]:
        """Return mean cosine and angle of each layer."""
        with np.errstate(invalid="ignore"):  # 0 / 0: nothing passed through the layer
            means = (self._sums[:, :2] / self._sums[:, 2:]).tolist()
        return [(finite_number(cosine), finite_number(angle)) for cosine, angle in means]
