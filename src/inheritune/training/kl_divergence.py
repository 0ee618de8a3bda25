"""Cross-entropy and KL divergence from a reference, summed over tokens, a chunk at a time.

B batch, T sequence, D hidden, V vocabulary; N = B x T tokens, n of them at a time, k likeliest ids.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Full", "LazyLogits", "ReferenceDistribution", "TopK", "loss_sums", "scores_of"]

_CHUNK_LOGITS = 2**24  # made at a time, of each model: 64 MiB in fp32
_IGNORED = -100


@dataclass(frozen=True)
class LazyLogits:
    """The logits of a model, made where they are asked for.

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

    def chunks(self) -> list[slice]:
        """Tokens whose logits may be there at the same time."""
        columns = self.hidden.shape[1] if self.weight is None else self.weight.shape[0]
        each = max(1, _CHUNK_LOGITS // columns)
        return [slice(first, first + each) for first in range(0, len(self.hidden), each)]

    def cast(self) -> "LazyLogits":
        """The same with the head in the precision of the states."""
        if self.weight is None:
            return self
        dtype = self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return LazyLogits(self.hidden, self.weight.to(dtype), bias)


def scores_of(model: Any, input_ids: "Tensor", chunked_head: bool) -> LazyLogits:
    """What a model predicts behind every token.

    Args:
        model: A transformers causal language model.
        input_ids: (B, T) int64.
        chunked_head: Whether its logits are the head's product and nothing more.
    """
    if not chunked_head:
        return LazyLogits(model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1))
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # as autocast would have the head's product
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return LazyLogits(hidden, head.weight, getattr(head, "bias", None))


class ReferenceDistribution(Protocol):
    """What is known of the reference's distributions over N tokens."""

    def compare(self, ours: "Tensor", part: slice) -> "tuple[Tensor, Tensor]":
        """The divergence of some tokens, and the distribution that would make it 0.

        Args:
            ours: The target's log-probabilities at the temperature, (n, V) fp32.
            part: Which tokens these are.

        Returns:
            KL(reference || target), (n,), and probabilities, (n, V).
        """


@dataclass(frozen=True)
class Full:
    """All of them: the KL divergence is summed over the vocabulary."""

    scores: LazyLogits
    temperature: float

    def compare(self, ours: "Tensor", part: slice) -> "tuple[Tensor, Tensor]":
        """See `ReferenceDistribution`."""
        theirs = (self.scores.rows(part).float() / self.temperature).log_softmax(-1)
        wanted = theirs.exp()
        return (wanted * (theirs - ours)).sum(-1), wanted


@dataclass(frozen=True)
class TopK:
    """The k likeliest ids, and all others lumped into one outcome: the divergence over k + 1.

    It is at most the one over the whole vocabulary, and 0 where that is 0. Within the rest the
    target's own proportions stand: nothing pulls at them.

    Attributes:
        ids: (N, k) int64.
        log_p: Their log-probabilities at the temperature, (N, k) fp32.
        log_rest: Log-probability of all others together, (N,) fp32.
    """

    ids: "Tensor"
    log_p: "Tensor"
    log_rest: "Tensor"

    @classmethod
    def of(cls, logits: "Tensor", k: int, temperature: float) -> "TopK":
        """Of logits, (n, V) with k < V."""
        theirs = (logits.float() / temperature).log_softmax(-1)
        log_p, ids = theirs.topk(k)
        return cls(ids, log_p, _lump(theirs, ids))

    def compare(self, ours: "Tensor", part: slice) -> "tuple[Tensor, Tensor]":
        """See `ReferenceDistribution`."""
        ids, log_rest = self.ids[part], self.log_rest[part]
        log_p = self.log_p[part]
        # What was rounded to be stored adds up to 1 again: a divergence is never below 0.
        total = torch.cat((log_p, log_rest[:, None]), 1).logsumexp(-1)
        log_p, log_rest = log_p - total[:, None], log_rest - total
        ours_rest = _lump(ours, ids)
        kl = (log_p.exp() * (log_p - ours.gather(1, ids))).sum(-1)
        kl = kl + log_rest.exp() * (log_rest - ours_rest)
        wanted = (ours + (log_rest - ours_rest)[:, None]).exp()
        return kl, wanted.scatter(1, ids, log_p.exp())


def _lump(log_p: "Tensor", ids: "Tensor") -> "Tensor":
    """Log-probability of all ids but these, (n,)."""
    return log_p.scatter(1, ids, -torch.inf).logsumexp(-1)


def loss_sums(
    ours: LazyLogits,
    theirs: ReferenceDistribution,
    labels: "Tensor",
    alpha: float,
    temperature: float,
) -> "Tensor":
    """The loss alpha x CE + (1 - alpha) x temperature^2 x KL, CE, and KL: nats, over all labels.

    Args:
        ours: The target's.
        theirs: The reference's, at the same temperature.
        labels: (N,) int64; -100 where nothing is to be predicted.
        alpha: Share of the cross-entropy, in [0, 1].
        temperature: Above 0.

    Returns:
        (3,) fp32; gradients flow through the first alone, into the target's scores alone.
    """
    terms = _Terms(theirs, labels, alpha, temperature)
    graph = torch.is_grad_enabled()
    sums: Tensor = _Sums.apply(ours.hidden, ours.weight, ours.bias, terms, graph)
    return sums


@dataclass(frozen=True)
class _Terms:
    """What the target's logits are compared with; see `loss_sums`."""

    theirs: ReferenceDistribution
    labels: "Tensor"
    alpha: float
    temperature: float

    def of(self, logits: "Tensor", part: slice) -> "tuple[Tensor, Tensor, Tensor]":
        """CE and KL of some tokens, and the loss's slope at each of their logits, (n, V), fp32."""
        logits, labels = logits.float(), self.labels[part]
        valid = labels != _IGNORED
        ce = F.cross_entropy(logits, labels, reduction="sum", ignore_index=_IGNORED)
        ours = (logits / self.temperature).log_softmax(-1)
        kl, wanted = self.theirs.compare(ours, part)
        # Of CE softmax(z) less the label, of KL (softmax(z / t) less what is wanted) / t.
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
    def forward(
        ctx: Any,
        hidden: "Tensor",
        weight: "Tensor | None",
        bias: "Tensor | None",
        terms: _Terms,
        with_gradients: bool,
    ) -> "Tensor":
        ours = LazyLogits(hidden, weight, bias).cast()
        gathered = _Gradients(hidden, weight, bias) if with_gradients else None
        ce, kl = hidden.new_zeros(2, dtype=torch.float32)
        for part in ours.chunks():
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
    def backward(ctx: Any, grad: "Tensor") -> tuple[Any, ...]:
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

    def add(self, part: slice, slope: "Tensor", ours: LazyLogits) -> None:
        """Take in the slope at some tokens' logits, (n, V)."""
        if ours.weight is None:
            self.hidden[part] = slope
            return
        assert self.weight is not None
        self.hidden[part] = slope @ ours.weight
        self.weight += slope.T @ ours.hidden[part]
        if self.bias is not None:
            self.bias += slope.sum(0)
