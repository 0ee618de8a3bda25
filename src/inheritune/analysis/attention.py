"""Measure attention rank and mass of every layer and head, as the paper defines them.

N sequences, T tokens in each, H heads, L layers.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from inheritune.analysis.observe import looks_like_attention, observed
from inheritune.analysis.rank import attention_mass, attention_rank, sink_share
from inheritune.errors import UnsupportedModelError
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.layers import find_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


# Every analysis has the ranks at these thresholds, beside the one that was requested.
THRESHOLDS = (0.80, 0.85, 0.90, 0.95)
_MASS_THRESHOLD = 0.90
_NEARLY_ONE = 1.5
_MATRICES = 1 << 26  # most values of a layer's matrices in one forward: 256 MB in fp32


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer, averaged over sequences; arrays are (H,)."""

    layer: int  # position from the input, from 0
    # Fewest singular values that hold the threshold's share of the squared ones, from 1 to T.
    rank: NDArray[np.float64]
    rank_at: Mapping[float, float]  # MaxRank by threshold
    mass: NDArray[np.float64]  # fewest columns that hold 90 % of the squared norm, from 1 to T
    sink: NDArray[np.float64]  # mean weight on the heaviest column, in (0, 1]

    @property
    def max_rank(self) -> float:
        """Rank of the fullest head."""
        return float(self.rank.max())

    @property
    def mean_mass(self) -> float:
        """Mass, mean over heads."""
        return float(self.mass.mean())

    @property
    def mean_sink(self) -> float:
        """Weight on the heaviest column, mean over heads."""
        return float(self.sink.mean())

    @property
    def heads_near_one(self) -> float:
        """Share of heads whose rank is below 1.5."""
        return float((self.rank < _NEARLY_ONE).mean())

    @property
    def is_lazy(self) -> bool:
        """Whether every head has rank 1 on every sequence."""
        return self.max_rank == 1.0

    def as_json(self) -> dict[str, Any]:
        """Return the layer's row in analysis.json."""
        return {
            "layer": self.layer,
            "max_rank": self.max_rank,
            "avg_mass": self.mean_mass,
            "sink_share": self.mean_sink,
            "heads_near_one": self.heads_near_one,
            "lazy": self.is_lazy,
            "max_rank_at": {f"{threshold:g}": rank for threshold, rank in self.rank_at.items()},
            "rank": self.rank.round(4).tolist(),
            "mass": self.mass.round(4).tolist(),
            "sink": self.sink.round(6).tolist(),
        }


@dataclass(frozen=True)
class AttentionStatistics:
    """The attention of all layers of a model."""

    layers: list[LayerAttention]  # layers that have attention
    skipped: list[int]  # indices of the layers that have none
    threshold: float  # share of the squared singular values that a rank holds
    sequences: int  # N
    tokens_per_sequence: int  # T

    @property
    def max_ranks(self) -> dict[int, float]:
        """MaxRank by layer."""
        return {layer.layer: layer.max_rank for layer in self.layers}

    @property
    def mean_rank(self) -> float:
        """MaxRank, mean over layers."""
        return float(np.mean([layer.max_rank for layer in self.layers]))

    @property
    def heads_near_one(self) -> float:
        """Share of all heads whose rank is below 1.5."""
        ranks = np.concatenate([layer.rank for layer in self.layers])
        return float((ranks < _NEARLY_ONE).mean())

    @property
    def lazy_layers(self) -> list[int]:
        """Layers of which every head has rank 1 on every sequence."""
        return [layer.layer for layer in self.layers if layer.is_lazy]

    def as_json(self) -> dict[str, Any]:
        """Return the model's attention in analysis.json."""
        return {
            "threshold": self.threshold,
            "sequences": self.sequences,
            "tokens_per_sequence": self.tokens_per_sequence,
            "avg_rank": self.mean_rank,
            "heads_near_one": self.heads_near_one,
            "lazy_layers": self.lazy_layers,
            "layers": [layer.as_json() for layer in self.layers],
            "without_attention": self.skipped,
        }


def measure_attention(
    model: "PreTrainedModel",
    total: int,
    ids: NDArray[np.int64],
    threshold: float = 0.90,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "attention",
) -> AttentionStatistics:
    """Measure rank and mass of every head's causal attention, per sequence, before dropout.

    Matrices are reduced one layer at a time and never averaged. No padding: sequences are full.

    Args:
        model: A causal language model in fp32; left in evaluation mode, with its own attention.
        total: L, its number of layers.
        ids: (N, T), at least one sequence of two tokens.
        threshold: Share of the squared singular values that a rank holds, in (0, 1).

    Raises:
        UnsupportedModelError: No layer shows its attention.
        Interrupted: ``stop`` was set.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, section 2.
    """
    layers = find_layers(model, total)
    device = next(model.parameters()).device
    sums = _Sums(tuple(dict.fromkeys((threshold, *THRESHOLDS))))
    size, options = _micro_batch(model, *ids.shape), _few_logits(model)
    model.eval()
    # The sink adds a layer's matrices up as they appear: those of all layers would fill the memory.
    with torch.no_grad(), observed(model, layers, sums.take):
        for first in range(0, len(ids), size):
            batch = torch.from_numpy(ids[first : first + size]).to(device)
            model(input_ids=batch, use_cache=False, **options)
            sums.end_forward(model)
            on_progress(Progress(task, min(first + size, len(ids)), len(ids), "sequences"))
            if stop is not None:
                stop.check(f"{task} is measured again")
    return AttentionStatistics(
        layers=sums.layers(len(ids)),
        skipped=sorted(set(range(total)) - sums.seen),
        threshold=threshold,
        sequences=len(ids),
        tokens_per_sequence=ids.shape[1],
    )


def _few_logits(model: "PreTrainedModel") -> dict[str, int]:
    """Compute the last logits only: all of them, which nobody reads, take a third of the time."""
    name = "logits_to_keep"
    return {name: 1} if name in inspect.signature(model.forward).parameters else {}


def _micro_batch(model: "PreTrainedModel", sequences: int, length: int) -> int:
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    heads = max(heads) if isinstance(heads, list) else heads
    return max(1, min(sequences, _MATRICES // (4 * (heads or 16) * length * length), 32))


class _Sums:
    """Sums over sequences of rank, mass and sink; the matrices themselves are not kept."""

    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self._thresholds = thresholds
        self._sums: dict[int, Tensor] = {}
        self._forward: dict[int, list[Tensor]] = {}

    @property
    def seen(self) -> set[int]:
        return set(self._sums)

    def take(self, layer: int, weights: "Tensor") -> None:
        if layer not in self._sums and not looks_like_attention(weights):
            raise UnsupportedModelError(
                f"layer {layer} has attention of shape {tuple(weights.shape)} that is not causal.",
                "Its rank has no meaning here; leave analyze out.",
            )
        batch, heads, length, _ = weights.shape
        matrices = weights.reshape(batch * heads, length, length)
        ranks = attention_rank(matrices, self._thresholds).double().view(batch, heads, -1)
        mass = attention_mass(matrices, _MASS_THRESHOLD).double().view(batch, heads, 1)
        sink = sink_share(matrices).double().view(batch, heads, 1)
        sums = torch.cat([ranks, mass, sink], -1).sum(0).cpu()  # (H, Q + 2)
        self._forward.setdefault(layer, []).append(sums)

    def end_forward(self, model: "PreTrainedModel") -> None:
        for layer, parts in self._forward.items():
            heads = torch.cat(parts)  # a layer may have several attentions
            self._sums[layer] = self._sums.get(layer, torch.zeros_like(heads)) + heads
        self._forward.clear()
        if not self._sums:
            raise UnsupportedModelError(
                f"the attention of {type(model).__name__} cannot be observed: no layer shows any.",
                "It may have none, as state space models do.",
            )

    def layers(self, sequences: int) -> list[LayerAttention]:
        layers = []
        for layer, total in sorted(self._sums.items()):
            values = total.numpy() / sequences  # (H, Q + 2)
            ranks = values[:, :-2]
            layers.append(
                LayerAttention(
                    layer=layer,
                    rank=ranks[:, 0],
                    rank_at={t: float(ranks[:, i].max()) for i, t in enumerate(self._thresholds)},
                    mass=values[:, -2],
                    sink=values[:, -1],
                )
            )
        return layers
