"""Estimate the memory that a training needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inheritune.model_files.config import text_config
from inheritune.model_files.flops import first_int, hidden_size
from inheritune.recipe.training import Train

BYTES_PER_PARAMETER = 16  # of a training without activations: fp32 weights and gradients, moments


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on the device while training."""

    weights: int  # fp32, plus a copy in the precision of the computation
    gradients: int  # fp32
    moments: int  # AdamW's two moments, fp32
    activations: int  # of one micro-batch, with its logits; a rough figure
    # Weights of the reference in a distillation, in the precision of the computation; several
    # processes share them, but where predictions are stored
    reference: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.gradients + self.moments + self.activations + self.reference


# Measured: written, hashed and synced, on the disk of a rented machine (docs/log.md).
SAVED_BYTES_PER_S = 3e8


def estimate_memory(
    config: Mapping[str, Any],
    params: int,
    layers: int,
    train: Train,
    precision: str,
    trained: int,
    lowest_trained_layer: int,
    reference: int = 0,
    compares_hidden: bool = False,
) -> Memory:
    """Estimate the memory that a training needs on its device.

    Args:
        precision: ``"bf16"`` or ``"fp32"``.
        trained: Parameters that are trained.
        lowest_trained_layer: First layer whose activations a backward pass needs.
        reference: Parameters of the reference that runs beside the training; 0 if none does.
        compares_hidden: Whether hidden states are compared: a slope for each layer is kept, in the
            precision of the residual stream, which is fp32 under autocast.

    Source: Korthikanti et al., arXiv 2205.05198, equation 1: 34 bytes for each position and channel
    of a layer at 16 bits, without the attention matrices, which today's kernels do not store.
    Logits: in the precision of the computation and in fp32, with their gradients.
    """
    section = text_config(config)
    width = hidden_size(section)
    rows = first_int(section, ("vocab_size",)) or 0
    item = 2 if precision == "bf16" else 4
    positions = train.micro_batch * train.seq_len
    hidden = (17 * item + 4 * compares_hidden) * positions * width * (layers - lowest_trained_layer)
    logits = positions * rows * 2 * (item + 4)
    copies = params * item if precision == "bf16" else 0
    return Memory(
        weights=4 * params + copies,
        gradients=4 * trained,
        moments=8 * trained,
        activations=hidden + logits,
        reference=item * reference,
    )
