"""Compute the distillation loss: alpha CE + (1 - alpha) t^2 KL(reference || target), over tokens.

Where logits are the head's product and nothing more, they are made for a chunk of tokens at a time,
of both models, and never held whole.

B batch, T sequence, D hidden, V vocabulary; N = B x T tokens, n of them at a time, k likeliest ids.
z: the target's logits; q = softmax(z / t); p: the reference's distribution at the temperature t.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from inheritune.training.loss import LazyLogits, TrainingObjective, lazy_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_IGNORED = -100


@dataclass(frozen=True)
class Full:
    """The reference's whole distributions p over N tokens."""

    logits: LazyLogits
    temperature: float

    def kl_divergence(self, log_q: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Compute KL(p || q) = sum_v p_v (log p_v - log q_v) of some tokens.

        Args:
            log_q: The target's log-probabilities at the temperature, (n, V) fp32.
            part: The tokens, of N.

        Returns:
            KL(p || q), (n,); and p, (n, V), the distribution at which it is 0.
        """
        log_p = (self.logits.rows(part).float() / self.temperature).log_softmax(-1)
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(-1), p


@dataclass(frozen=True)
class TopK:
    """The k likeliest ids of N tokens; all others are lumped into one outcome.

    The divergence over these k + 1 outcomes is at most the one over the whole vocabulary, and 0
    where that is 0. Within the rest p has the target's own proportions: p_v = q_v p_rest / q_rest.
    """

    ids: Tensor  # (N, k) int64
    log_p: Tensor  # their log-probabilities at the temperature, (N, k) fp32
    log_rest: Tensor  # log-probability of all others together, (N,) fp32

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float) -> "TopK":
        """Keep the k likeliest ids of logits, (n, V) with k < V."""
        log_p = (logits.float() / temperature).log_softmax(-1)
        top_log_p, ids = log_p.topk(k)
        return cls(ids, top_log_p, _log_rest(log_p, ids))

    def kl_divergence(self, log_q: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Compute sum_k p_k (log p_k - log q_k) + p_rest (log p_rest - log q_rest); see `Full`."""
        ids, log_rest = self.ids[part], self.log_rest[part]
        log_p = self.log_p[part]
        # Stored values are rounded. Made to add up to 1 again, a divergence is never below 0.
        total = torch.cat((log_p, log_rest[:, None]), 1).logsumexp(-1)
        log_p, log_rest = log_p - total[:, None], log_rest - total
        log_q_rest = _log_rest(log_q, ids)
        kl = (log_p.exp() * (log_p - log_q.gather(1, ids))).sum(-1)
        kl = kl + log_rest.exp() * (log_rest - log_q_rest)
        p = (log_q + (log_rest - log_q_rest)[:, None]).exp()
        return kl, p.scatter(1, ids, log_p.exp())


def _log_rest(log_p: Tensor, ids: Tensor) -> Tensor:
    """Compute the log-probability of all ids but these, (n,)."""
    return log_p.scatter(1, ids, -torch.inf).logsumexp(-1)


class ReferenceSource(Protocol):
    """A reference to learn from: the model itself, or its predictions on disk."""

    @property
    def vocab_size(self) -> int:
        """Number of ids that the reference predicts."""

    @property
    def temperature(self) -> float:
        """Divides the logits of both models; above 0."""

    def distribution(self, input_ids: Tensor, position: int) -> Full | TopK:
        """Return the distributions of the token after each of (B, T) inputs, N = B x T tokens.

        ``position`` is the place of the first sequence in the order of samples.
        """


class DistillationObjective(TrainingObjective):
    """The distillation loss of a target against its reference.

    Args:
        source: The reference; no module, so that FSDP does not take it for a part of the target.
        alpha: Weight of the cross-entropy, in [0, 1]; the KL divergence has the rest.

    Source: Hinton et al., arXiv 1503.02531, section 2; Sanyal et al., arXiv 2404.08634.
    """

    def __init__(
        self, model: "PreTrainedModel", source: ReferenceSource, alpha: float, avoids_logits: bool
    ) -> None:
        super().__init__(model, avoids_logits)
        self.source, self.alpha = source, alpha

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """Return three sums over the labels; see `TrainingObjective.forward`.

        Returns:
            The loss, CE and KL: (3,) fp32, nats. Gradients flow through the first alone, into the
            target alone.
        """
        if labels is None:
            return super().forward(input_ids, use_cache=use_cache)
        alpha, t, labels = self.alpha, self.source.temperature, labels.flatten()
        reference = self.source.distribution(input_ids, self.position)
        target = lazy_logits(self.model, input_ids, self.avoids_logits)
        gradients = _Gradients(target) if torch.is_grad_enabled() else None
        # Gradients are gathered in the same walk over the tokens: the backward pass would have to
        # make all logits a second time.
        with torch.no_grad():
            logits = target.cast()
            ce, kl = target.hidden.new_zeros(2, dtype=torch.float32)
            for part in logits.chunks():
                z, y = logits.rows(part).float(), labels[part]  # (n, V), (n,)
                is_label = y != _IGNORED
                # CE = -log softmax(z)[y];  KL(p || q) = sum_v p_v (log p_v - log q_v)
                ce = ce + F.cross_entropy(z, y, reduction="sum", ignore_index=_IGNORED)
                log_q = (z / t).log_softmax(-1)
                token_kl, p = reference.kl_divergence(log_q, part)
                kl = kl + torch.where(is_label, token_kl, 0).sum()
                if gradients is not None:
                    # dCE/dz = softmax(z) - onehot(y);  t^2 dKL/dz = t (q - p)
                    slope = z.softmax(-1)
                    slope.scatter_add_(1, y.clamp(min=0)[:, None], -torch.ones_like(slope[:, :1]))
                    slope *= alpha
                    slope += (1 - alpha) * t * (log_q.exp_() - p)
                    slope = slope * is_label[:, None]
                    gradients.add(part, slope.to(target.hidden.dtype), logits)
            sums = torch.stack((alpha * ce + (1 - alpha) * t**2 * kl, ce, kl))
        if gradients is None:
            return sums
        return _GatheredGradients.apply(target.hidden, target.weight, target.bias, sums, gradients)


class _Gradients:
    """The gradients of the loss over the tokens walked so far; the head's are summed in fp32."""

    def __init__(self, target: LazyLogits) -> None:
        weight, bias = target.weight, target.bias
        self.hidden = torch.empty_like(target.hidden)
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, part: slice, slope: Tensor, logits: LazyLogits) -> None:
        """Add the gradients of some tokens; ``slope`` is dloss/dz, (n, V)."""
        # z = h W^T + b:  dloss/dh = slope W;  dloss/dW = slope^T h;  dloss/db = sum of slope
        if logits.weight is None:
            self.hidden[part] = slope
            return
        assert self.weight is not None
        self.hidden[part] = slope @ logits.weight
        self.weight += slope.T @ logits.hidden[part]
        if self.bias is not None:
            self.bias += slope.sum(0)


class _GatheredGradients(torch.autograd.Function):
    """Attach gradients that are known already to the sums that they belong to."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        sums: Tensor,
        gradients: _Gradients,
    ) -> Tensor:
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return sums.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if g is None else (g * grad[0]).to(dtype) for g, dtype in pairs]
        return *scaled, None, None
