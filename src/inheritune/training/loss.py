"""Compute the training loss: next-token cross-entropy, summed over tokens.

A sum, not a mean: a step that is split into any number of micro-batches and processes then has the
same gradient. It is divided once, by `optimizer.mean_and_clip`.

B batch, T sequence, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_CHUNK_LOGITS = 2**24  # made at a time, of each model: 64 MiB in fp32
_SCALE = 64.0  # a power of two: multiplied and divided, weights come back bit for bit
# On CUDA the default would add up the head's gradient in bf16, token by token.
_IN_FP32 = nn.LinearCrossEntropyOptions(acc_policy="accurate", acc_dtype=torch.float32)
_COMPARED_TOKENS = 32  # in each of two sequences
_MAX_GAP = 1e-3  # nats per token; models with a plain head stay below 4e-6


class TrainingObjective(nn.Module):
    """A model and its loss in one forward pass, so that what FSDP gathers serves both."""

    def __init__(self, model: "PreTrainedModel", avoids_logits: bool) -> None:
        super().__init__()
        self.model = model
        self.avoids_logits = avoids_logits  # (B, T, V) is never held
        # The next micro-batch's place in the order of samples: stored distributions lie there.
        self.position = 0
        self.alpha = 1.0  # weight of the cross-entropy; below 1 only beside a reference

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """Return the summed loss; without labels the model's own output, for validation.

        Args:
            input_ids: (B, T) int64.
            labels: (B, T) int64, the id that follows each input; -100: not to be predicted.

        Returns:
            A scalar, nats, fp32.
        """
        if labels is None:
            return self.model(input_ids=input_ids, use_cache=use_cache)
        cross_entropy = fused_cross_entropy_sum if self.avoids_logits else cross_entropy_sum
        return cross_entropy(self.model, input_ids, labels)


def cross_entropy_sum(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy over all labels, from the model's own logits: nats, fp32."""
    logits = model(input_ids=input_ids, use_cache=False).logits  # (B, T, V)
    # CE = sum over tokens of -log softmax(z)[label]
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def fused_cross_entropy_sum(model: "PreTrainedModel", input_ids: Tensor, labels: Tensor) -> Tensor:
    """Compute the same loss from the last hidden states, in chunks: (B, T, V) is never held.

    Right only for models that `logits_are_plain_head_output` accepts.
    """
    # The op takes one dtype and is not cast by autocast itself.
    states = lazy_logits(model, input_ids, avoids_logits=True).cast()
    assert states.weight is not None
    # In bf16 the op's own sum is off by 0.1 nats per token: sum its single losses in fp32.
    is_fp32 = states.hidden.dtype == torch.float32
    loss = F.linear_cross_entropy(
        states.hidden,
        states.weight,
        labels.flatten(),
        linear_bias=states.bias,
        reduction="sum" if is_fp32 else "none",
        options=nn.LinearCrossEntropyOptions() if is_fp32 else _IN_FP32,
    )
    return loss if is_fp32 else loss.float().sum()


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
        each, end = max(1, _CHUNK_LOGITS // columns), len(self.hidden)
        return [slice(first, min(first + each, end)) for first in range(0, end, each)]

    def cast(self) -> "LazyLogits":
        """Return the same with the head in the precision of the states."""
        if self.weight is None:
            return self
        dtype = self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return LazyLogits(self.hidden, self.weight.to(dtype), bias)


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


def logits_are_plain_head_output(model: "PreTrainedModel") -> bool:
    """Return whether a model's logits are its head's product and nothing more.

    Only then may the loss be computed from hidden states. Soft-caps and logit scales stand between
    head and logits; a fresh model's logits are too small for a soft-cap to show, hence the head is
    made 64 times larger for the comparison. The weights, fp32, are the same bits afterwards.
    """
    head: Any = model.get_output_embeddings()
    if head is None or type(head) is not nn.Linear:
        return False
    rows, training = head.weight.shape[0], model.training
    ids = (
        torch.arange(2 * (_COMPARED_TOKENS + 1)).remainder(rows).view(2, -1).to(head.weight.device)
    )
    input_ids, labels = ids[:, :-1], ids[:, 1:]
    model.eval()
    with torch.no_grad():
        head.weight.mul_(_SCALE)
        try:
            from_hidden = fused_cross_entropy_sum(model, input_ids, labels)
            from_logits = cross_entropy_sum(model, input_ids, labels)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        finally:
            head.weight.div_(_SCALE)
            model.train(training)
    return bool((from_hidden - from_logits).abs() / labels.numel() < _MAX_GAP)
