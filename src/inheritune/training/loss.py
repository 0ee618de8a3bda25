"""The training loss: next-token cross-entropy, summed over tokens.

B batch, T sequence, D hidden, V vocabulary.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from inheritune.training.distillation import DistillationLoss

__all__ = ["TrainingObjective", "logits_are_plain_head_output", "loss_sum", "op_loss_sum"]

_SCALE = 64.0  # a power of two: multiplied and divided, weights come back bit for bit
# On CUDA the default would add up the head's gradient in bf16, token by token.
_IN_FP32 = nn.LinearCrossEntropyOptions(acc_policy="accurate", acc_dtype=torch.float32)
_GAP = 1e-3  # nats per token; models that the op fits stay below 4e-6


class TrainingObjective(nn.Module):
    """A model and its loss in one forward, so that what FSDP gathers serves both.

    Args:
        model: A transformers causal language model.
        fused: Whether the loss is computed without ever holding the logits.
        distillation: What takes the place of that loss, if anything does.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        fused: bool,
        distillation: "DistillationLoss | None" = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.fused = fused
        self.distillation = distillation

    def forward(
        self, input_ids: "Tensor", labels: "Tensor | None" = None, use_cache: bool = False
    ) -> Any:
        """The sum of the loss over the labels that are not -100; the model's output without any.

        With a distillation three sums, (3,), see `DistillationLoss`.
        """
        if labels is None:
            return self.model(input_ids=input_ids, use_cache=use_cache)
        if self.distillation is not None:
            return self.distillation(self.model, input_ids, labels)
        loss = op_loss_sum if self.fused else _loss_of_logits
        return loss(self.model, input_ids, labels)


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
    return _loss_of_logits(model, samples[:, :-1], samples[:, 1:])


def _loss_of_logits(model: "nn.Module", input_ids: "Tensor", labels: "Tensor") -> "Tensor":
    logits = model(input_ids=input_ids, use_cache=False).logits  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def op_loss_sum(model: "PreTrainedModel", input_ids: "Tensor", labels: "Tensor") -> "Tensor":
    """The same loss from the last hidden states, in chunks: (B, T, V) is never held.

    Right only for models whose logits are the head's product and nothing more: ask
    `logits_are_plain_head_output` first.
    """
    head: Any = model.get_output_embeddings()
    decoder: Any = model.get_decoder()
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state  # (B, T, D)
    hidden, weight, bias = hidden.flatten(0, 1), head.weight, getattr(head, "bias", None)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # the op takes one dtype and is not cast itself
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    # In bf16 the op's own sum is off by 0.1 nats per token: sum its single losses in fp32.
    exact = hidden.dtype == torch.float32
    loss = F.linear_cross_entropy(
        hidden,
        weight,
        labels.flatten(),
        linear_bias=bias,
        reduction="sum" if exact else "none",
        options=nn.LinearCrossEntropyOptions() if exact else _IN_FP32,
    )
    return loss if exact else loss.float().sum()


def logits_are_plain_head_output(model: "PreTrainedModel", length: int = 32) -> bool:
    """Whether `op_loss_sum` is this model's loss.

    Soft-caps and logit scales stand between head and logits. A fresh model's logits are too small
    for a soft-cap to show, hence the head is made 64 times larger while it is asked.

    Args:
        model: fp32 weights; they are the same bits afterwards.
        length: Tokens of the two sequences that are asked about.
    """
    head: Any = model.get_output_embeddings()
    if head is None or type(head) is not nn.Linear:
        return False
    rows, training = head.weight.shape[0], model.training
    ids = torch.arange(2 * (length + 1)).remainder(rows).view(2, -1).to(head.weight.device)
    model.eval()
    with torch.no_grad():
        head.weight.mul_(_SCALE)
        try:
            ours = op_loss_sum(model, ids[:, :-1], ids[:, 1:])
            theirs = loss_sum(model, ids)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        finally:
            head.weight.div_(_SCALE)
            model.train(training)
    return bool((ours - theirs).abs() / (2 * length) < _GAP)
