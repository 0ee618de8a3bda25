"""The training loss: next-token cross-entropy, summed over tokens.

B batch, T sequence, V vocabulary.
"""

from typing import TYPE_CHECKING

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["loss_sum"]


def loss_sum(model: "nn.Module", samples: "Tensor") -> "Tensor":
    """Cross-entropy of every next token, summed, in fp32.

    A sum, so that a step split into any number of micro-batches has the same gradient; it is
    divided once, by `optimizer.mean_and_clip`.

    Args:
        model: A transformers causal language model.
        samples: Token ids, (B, T + 1) int64: T inputs and, shifted by one, T targets.

    Returns:
        A scalar, nats.
    """
    logits = model(input_ids=samples[:, :-1], use_cache=False).logits  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), samples[:, 1:].flatten(), reduction="sum")
