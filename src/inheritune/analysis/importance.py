"""Measure how much each layer changes its input, and what removing the layer costs.

N sequences, T tokens, D hidden, L layers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inheritune.analysis.cut_scores import score_cuts
from inheritune.analysis.distances import measure_distances
from inheritune.run_record.fields import finite_number
from inheritune.surgery.removal import without
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import StopFlag

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        removal_sequences: Number of first sequences to measure the losses on; 0: leave the losses
            out.

    Raises:
        UnsupportedModelError: The model has no list of so many layers.
        Interrupted: ``stop`` was set.
    """
    distances = measure_distances(model, total, ids, stop, on_progress, task)
    angles, influence = distances.angles.diagonal(1), distances.influence
    few = ids[:removal_sequences]  # since removal takes half as many passes as there are layers
    loss: float | None = None
    removal_losses: list[float | None] = [None] * total
    if len(few):
        cuts = [without(total, [layer]) for layer in range(total)]
        scores = score_cuts(model, total, few, cuts, stop, on_progress, task)
        loss = finite_number(scores.whole.loss)
        removal_losses = [finite_number(cut.loss - scores.whole.loss) for cut in scores.cuts]
    return Importance(
        loss=loss,
        sequences=len(few),
        layers=[
            LayerImportance(
                layer=layer,
                influence=finite_number(float(influence[layer])),
                angle=finite_number(float(angles[layer])),
                removal_loss=removal_losses[layer],
            )
            for layer in range(total)
        ],
    )
