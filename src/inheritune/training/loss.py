"""Compute the training loss: next-token cross-entropy, summed over tokens.

A sum, not a mean: a step that is split into any number of micro-batches and processes then has the
same gradient. It is divided once, by `optimizer.mean_and_clip`.

B batch, T sequence, D hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inheritune.training.chunked_loss import IGNORED, sum_over_tokens
from inheritune.training.lazy_logits import LazyLogits, lazy_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_SCALE = 64.0  # a power of two: multiplied and divided, weights come back bit for bit
# On CUDA the default would add up the head's gradient in bf16, token by token.
_IN_FP32 = nn.LinearCrossEntropyOptions(acc_policy="accurate", acc_dtype=torch.float32)
_COMPARED_TOKENS = 32  # in each of two sequences
_MAX_GAP = 1e-3  # nats per token; models with a plain head stay below 4e-6


class TrainingObjective(nn.Module):
    """A model and its loss in one forward pass, so that what FSDP gathers serves both."""

    def __init__(
        self, model: "PreTrainedModel", avoids_logits: bool, takes_op: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.avoids_logits = avoids_logits  # (B, T, V) is never held
        self._takes_op = takes_op  # torch's own loss over hidden states, in place of chunks
        # The next micro-batch's place in the order of samples: stored distributions lie there.
        self.position = 0
        self.alpha = 1.0  # weight of the cross-entropy; below 1 only beside a reference
        # What is left to prove by all processes at once: see `distillation.make_objective`.
        self.proof: Callable[[], None] | None = None

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
        if not self.avoids_logits:
            return cross_entropy_sum(self.model, input_ids, labels)
        return fused_cross_entropy_sum(self.model, input_ids, labels, self._takes_op)


def cross_entropy_sum(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy over all labels, from the model's own logits: nats, fp32."""
    logits = model(input_ids=input_ids, use_cache=False).logits  # (B, T, V)
    # CE = sum over tokens of -log softmax(z)[label]
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def fused_cross_entropy_sum(
    model: "PreTrainedModel", input_ids: Tensor, labels: Tensor, takes_op: bool = False
) -> Tensor:
    """Compute the same loss from the last hidden states, in chunks: (B, T, V) is never held.

    Right only for models that `logits_are_plain_head_output` accepts.
    """
    logits = lazy_logits(model, input_ids, avoids_logits=True)
    cross_entropy = _sum_by_op if takes_op else _sum_in_chunks
    return cross_entropy(logits, labels.flatten())


def _sum_in_chunks(logits: LazyLogits, labels: Tensor) -> Tensor:
    def of_block(z: Tensor, y: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        log_q = z.log_softmax(-1)
        ce = F.nll_loss(log_q, y, reduction="sum", ignore_index=IGNORED)
        return ce[None], cross_entropy_slope(log_q.exp_(), y)

    return sum_over_tokens(logits, labels, lambda chunk: of_block)[0]


def cross_entropy_slope(q: Tensor, labels: Tensor) -> Tensor:
    """Make of q = softmax(z), (n, V), the cross-entropy's slope in z, in place."""
    # dCE/dz = softmax(z) - onehot(y)
    return q.scatter_add_(1, labels.clamp(min=0)[:, None], -torch.ones_like(q[:, :1]))


def _sum_by_op(logits: LazyLogits, labels: Tensor) -> Tensor:
    states = logits.cast()  # the op takes one dtype and is not cast by autocast itself
    assert states.weight is not None
    # In bf16 the op's own sum is off by 0.1 nats per token: sum its single losses in fp32.
    is_fp32 = states.hidden.dtype == torch.float32
    loss = F.linear_cross_entropy(
        states.hidden,
        states.weight,
        labels,
        linear_bias=states.bias,
        reduction="sum" if is_fp32 else "none",
        options=nn.LinearCrossEntropyOptions() if is_fp32 else _IN_FP32,
    )
    return loss if is_fp32 else loss.float().sum()


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
