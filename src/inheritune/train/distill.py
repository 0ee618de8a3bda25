"""The loss of a target that also learns from its reference: cross-entropy and KL divergence.

B batch, T sequence, D hidden, V vocabulary; N = B x T tokens, n of them at a time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from inheritune.errors import SourceError
from inheritune.train.loss import op_agrees_with_the_model
from inheritune.train.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["Distillation", "DistillationLoss"]

_CHUNK_LOGITS = 2**25  # made at a time, of each model: 128 MiB in fp32
_NO_DIVERGENCE = 1e-4  # nats per token; of equal logits it is 0 up to fp32 sums
_IGNORED = -100


@dataclass(frozen=True)
class Distillation:
    """What a target learns from besides the text.

    Attributes:
        reference: Its next-token distributions are learnt; its weights are never changed.
        alpha: Share of the cross-entropy in the loss, in [0, 1]; the rest is the divergence's.
        temperature: Both models' logits are divided by it for the divergence, above 0.
    """

    reference: "PreTrainedModel"
    alpha: float
    temperature: float


class DistillationLoss:
    """alpha x CE + (1 - alpha) x temperature^2 x KL(reference || target), summed over tokens.

    CE is the cross-entropy of the text, KL is summed over the whole vocabulary; both are sums over
    the same tokens, so that a step split into any number of micro-batches has the same gradient.
    Where logits are the head's product and nothing more, they are made a chunk of tokens at a time,
    of both models, and never held whole.

    It is no module: what stands around the target must not take the reference for a part of it.

    Args:
        model: The target.
        wanted: The reference, moved to the device and frozen, and the weights of the terms.
        settings: Device and precision; the reference computes as the target does.

    Raises:
        SourceError: The two models do not predict the same number of ids.

    Source: Hinton et al., arXiv 1503.02531, section 2; Sanyal et al., arXiv 2404.08634.
    """

    def __init__(self, model: "PreTrainedModel", wanted: Distillation, settings: Settings) -> None:
        _refuse_other_vocabulary(model, wanted.reference)
        self.alpha, self.temperature = wanted.alpha, wanted.temperature
        self.reference = wanted.reference
        self.reference.to(settings.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self._device, self._bf16 = settings.device, settings.precision == "bf16"
        self.by_head = op_agrees_with_the_model(model)
        self._reference_by_head = op_agrees_with_the_model(self.reference)

    def __call__(self, model: "nn.Module", input_ids: "Tensor", labels: "Tensor") -> "Tensor":
        """The loss, and what it is made of: CE and KL; nats, summed over the labels.

        Args:
            model: The target.
            input_ids: (B, T) int64.
            labels: (B, T) int64; -100 where nothing is to be predicted.

        Returns:
            (3,) fp32; gradients flow through the first alone, into the target alone.
        """
        return self._sums(model, self.by_head, input_ids, labels)

    def check(self, samples: "Tensor") -> None:
        """See that a copy of the reference has no divergence from it, by the same computation.

        Args:
            samples: (B, T + 1) int64, on the device.

        Raises:
            AssertionError: It has: the mistake is ours.
        """
        input_ids, labels = samples[:, :-1], samples[:, 1:]
        with torch.no_grad(), self._autocast():
            sums = self._sums(self.reference, self._reference_by_head, input_ids, labels)
        found = float(sums[2]) / labels.numel()  # of samples, every token has a label
        if not abs(found) < _NO_DIVERGENCE:  # NaN is none either
            raise AssertionError(
                f"the KL divergence of the reference from itself is {found} nats per token, not 0."
            )

    def _sums(
        self, model: "nn.Module", by_head: bool, input_ids: "Tensor", labels: "Tensor"
    ) -> "Tensor":
        with torch.no_grad(), self._autocast():
            theirs = _scores(self.reference, input_ids, self._reference_by_head).cast()
        ours = _scores(model, input_ids, by_head)
        terms = _Terms(theirs, labels.flatten(), self.alpha, self.temperature)
        sums: Tensor = _Sums.apply(  # type: ignore[no-untyped-call]
            ours.hidden, ours.weight, ours.bias, terms, torch.is_grad_enabled()
        )
        return sums

    def _autocast(self) -> torch.autocast:
        # Asked for even where processes gather the target in bf16: the reference is whole, in fp32.
        return torch.autocast(self._device, torch.bfloat16, enabled=self._bf16)


def _refuse_other_vocabulary(model: "PreTrainedModel", reference: "PreTrainedModel") -> None:
    ours, theirs = (
        int(m.config.get_text_config(decoder=True).vocab_size) for m in (model, reference)
    )
    if ours != theirs:
        raise SourceError(
            f"the target predicts {ours} ids and its reference {theirs}: there is no divergence "
            "between distributions over different ids.",
            "Give both the same vocabulary, or leave distill out.",
        )


@dataclass(frozen=True)
class _Scores:
    """Logits, made where they are asked for.

    Attributes:
        hidden: Last states, (N, D); the logits themselves, (N, V), where there is no weight.
        weight: Of the head, (V, D).
        bias: Of the head, (V,).
    """

    hidden: "Tensor"
    weight: "Tensor | None" = None
    bias: "Tensor | None" = None

    def rows(self, part: slice) -> "Tensor":
        """Logits of some tokens, (n, V)."""
        hidden = self.hidden[part]
        return hidden if self.weight is None else F.linear(hidden, self.weight, self.bias)

    def cast(self) -> "_Scores":
        """The same with the head in the precision of the states."""
        if self.weight is None:
            return self
        dtype = self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Scores(self.hidden, self.weight.to(dtype), bias)


def _scores(model: Any, input_ids: "Tensor", by_head: bool) -> _Scores:
    if not by_head:
        return _Scores(model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1))
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # as autocast would have the head's product
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return _Scores(hidden, head.weight, getattr(head, "bias", None))


@dataclass(frozen=True)
class _Terms:
    """What the target's logits are compared with.

    Attributes:
        reference: Its logits.
        labels: (N,) int64.
        alpha: See `Distillation`.
        temperature: See `Distillation`.
    """

    reference: _Scores
    labels: "Tensor"
    alpha: float
    temperature: float

    def of(self, logits: "Tensor", part: slice) -> "tuple[Tensor, Tensor, Tensor]":
        """CE and KL of some tokens, and the loss's slope at each of their logits, (n, V), fp32."""
        logits, labels = logits.float(), self.labels[part]
        valid = labels != _IGNORED
        ce = F.cross_entropy(logits, labels, reduction="sum", ignore_index=_IGNORED)
        ours = (logits / self.temperature).log_softmax(-1)
        theirs = (self.reference.rows(part).float() / self.temperature).log_softmax(-1)
        wanted = theirs.exp()
        kl = (wanted * (theirs - ours)).sum(-1)
        # Of CE softmax(z) less the label, of KL (softmax(z / t) less the reference's) / t.
        slope = logits.softmax(-1)
        slope.scatter_add_(1, labels.clamp(min=0)[:, None], -torch.ones_like(slope[:, :1]))
        slope *= self.alpha
        slope += (1 - self.alpha) * self.temperature * (ours.exp_() - wanted)
        return ce, torch.where(valid, kl, 0).sum(), slope * valid[:, None]


class _Sums(torch.autograd.Function):
    """The three sums in one walk over the tokens, which also gathers the gradients.

    The backward pass is given those, not the logits, which would be made a second time.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: "Tensor",
        weight: "Tensor | None",
        bias: "Tensor | None",
        terms: _Terms,
        with_gradients: bool,
    ) -> "Tensor":
        ours = _Scores(hidden, weight, bias).cast()
        columns = hidden.shape[1] if weight is None else weight.shape[0]
        each = max(1, _CHUNK_LOGITS // columns)
        gathered = _Gradients(hidden, weight, bias) if with_gradients else None
        ce, kl = (
            hidden.new_zeros((), dtype=torch.float32),
            hidden.new_zeros((), dtype=torch.float32),
        )
        for first in range(0, len(hidden), each):
            part = slice(first, first + each)
            more_ce, more_kl, slope = terms.of(ours.rows(part), part)
            ce, kl = ce + more_ce, kl + more_kl
            if gathered is not None:
                gathered.add(part, slope.to(hidden.dtype), ours)
        if gathered is not None:
            ctx.save_for_backward(gathered.hidden, gathered.weight, gathered.bias)
            ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        loss = terms.alpha * ce + (1 - terms.alpha) * terms.temperature**2 * kl
        return torch.stack((loss, ce, kl))

    @staticmethod
    def backward(ctx: Any, grad: "Tensor") -> tuple[Any, ...]:  # type: ignore[override]
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if g is None else (g * grad[0]).to(dtype) for g, dtype in found]
        return *scaled, None, None


class _Gradients:
    """The gradients of the loss, as far as the tokens have been walked; the head's in fp32."""

    def __init__(self, hidden: "Tensor", weight: "Tensor | None", bias: "Tensor | None") -> None:
        fp32 = torch.float32
        self.hidden = torch.empty_like(hidden)
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=fp32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=fp32)

    def add(self, part: slice, slope: "Tensor", ours: _Scores) -> None:
        """Take in the slope at some tokens' logits, (n, V)."""
        if ours.weight is None:
            self.hidden[part] = slope
            return
        assert self.weight is not None
        self.hidden[part] = slope @ ours.weight
        self.weight += slope.T @ ours.hidden[part]
        if self.bias is not None:
            self.bias += slope.sum(0)
