"""Logits that are computed for a few tokens at a time, so that those of a batch are never whole.

B batch, T sequence, N = B x T tokens, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_LOGITS = 2**25  # made at a time, of each model: 64 MiB in bf16


@dataclass(frozen=True)
class LazyLogits:
    """The logits of a model, computed for a few tokens at a time."""

    hidden: Tensor  # last states, (N, D); the logits themselves, (N, V), where there is no weight
    weight: Tensor | None = None  # weight of the head, (V, D)
    bias: Tensor | None = None  # bias of the head, (V,)

    def rows(self, part: slice) -> Tensor:
        """Compute the logits of some tokens, (n, V)."""
        hidden = self.hidden[part]
        return hidden if self.weight is None else F.linear(hidden, self.weight, self.bias)

    def chunks(self) -> list[slice]:
        """Divide the tokens so that the logits of a part fit into memory."""
        columns = self.hidden.shape[1] if self.weight is None else self.weight.shape[0]
        return slices(len(self.hidden), _CHUNK_LOGITS // columns)

    def cast(self) -> "LazyLogits":
        """Return the same with the head in the precision of the states."""
        if self.weight is None:
            return self
        dtype = self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return LazyLogits(self.hidden, self.weight.to(dtype), bias)


def are_small(tokens: int, rows: int) -> bool:
    """Return whether the logits of so many tokens, (N, V), are not worth dividing."""
    return tokens * rows <= _CHUNK_LOGITS


def slices(count: int, each: int) -> list[slice]:
    """Divide so many tokens into equal parts of at most ``each``, at least one token long."""
    parts = max(1, -(-count // max(1, each)))
    each = max(1, -(-count // parts))
    return [slice(first, min(first + each, count)) for first in range(0, count, each)]


def lazy_logits(model: Any, input_ids: Tensor, avoids_logits: bool) -> LazyLogits:
    """Run a model up to its head; all of it where logits are more than the head's product."""
    if not avoids_logits:
        return LazyLogits(model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1))
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # as autocast would cast the head's product
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return LazyLogits(hidden, head.weight, getattr(head, "bias", None))
