"""How much memory and disk a training will take: estimates, and said to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inheritune.model_files.config import text_config
from inheritune.model_files.flops import first_int
from inheritune.recipe.schema import Train

__all__ = ["SAVED_BYTES_PER_S", "Memory", "estimate_memory"]


@dataclass(frozen=True)
class Memory:
    """Bytes while training.

    Attributes:
        weights: fp32, and their copy in the precision of the computation.
        gradients: fp32.
        moments: AdamW's two, fp32.
        activations: Roughly: of one micro-batch, with its logits.
        reference: fp32, beside the model that learns from it; whole in every process.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    reference: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.activations + self.reference


# Written, hashed and synced, on a disk of a rented machine (docs/log.md).
SAVED_BYTES_PER_S = 3e8


def estimate_memory(
    config: Mapping[str, Any],
    params: int,
    layers: int,
    train: Train,
    precision: str,
    reference: int = 0,
) -> Memory:
    """Estimate what a training needs on its device.

    Args:
        config: Of the reference.
        params: Of the model that is trained.
        layers: Of the model that is trained.
        train: The recipe's section.
        precision: ``"bf16"`` or ``"fp32"``.
        reference: Parameters of the model that it learns from, if it does.

    Source: Korthikanti et al., arXiv 2205.05198, equation 1: 34 bytes for each position and channel
    of a layer at 16 bits, without the attention matrices, which no kernel of today keeps. Logits:
    in the precision of the computation and in fp32, with their gradients.
    """
    section = text_config(config)
    width = first_int(section, ("hidden_size", "n_embd", "d_model")) or 0
    rows = first_int(section, ("vocab_size",)) or 0
    item = 2 if precision == "bf16" else 4
    positions = train.micro_batch * train.seq_len
    inner = 17 * item * positions * width * layers
    logits = positions * rows * 2 * (item + 4)
    copies = params * item if precision == "bf16" else 0
    return Memory(4 * params + copies, 4 * params, 8 * params, inner + logits, 4 * reference)
