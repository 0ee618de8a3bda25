"""Compute the distillation loss: alpha CE + (1 - alpha) t^2 KL(reference || target), over tokens.

Where a variant asks for it, a distance of hidden states is added: see `hidden_states`.

Where logits are the head's product and nothing more, they are made for a chunk of tokens at a time,
of both models, and never held whole.

B batch, T sequence, D hidden, V vocabulary; N = B x T tokens, n of them at a time, k likeliest ids.
z: the target's logits; q = softmax(z / t); p: the reference's distribution; t: the temperature.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from inheritune.training.chunked_loss import (
    IGNORED,
    OfBlock,
    attach_gradients,
    sum_over_tokens,
)
from inheritune.training.hidden_states import HiddenStates
from inheritune.training.lazy_logits import LazyLogits, lazy_logits
from inheritune.training.loss import TrainingObjective, cross_entropy_slope

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_divergence(log_p: Tensor, p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(p || q) = sum_v p_v (log p_v - log q_v) of some tokens, (n,), nats.

    The differences are summed, not logits: fp32 probabilities add up to 1 but for 1e-5, which
    logits of 20 would turn into 2e-4 nats. 0 log 0 = 0.

    Args:
        log_p: (n, V) fp32, as p and log_q.
    """
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)


@dataclass(frozen=True)
class Divergence:
    """The divergence of some tokens, and what a loss needs of it."""

    kl: Tensor  # nats, (n,)
    loss: Tensor  # the same with the weight t^2 on what is tempered, (n,)
    slope: Tensor  # dloss/dz, (n, V), a tensor of its own


@dataclass(frozen=True)
class Full:
    """The reference's whole distributions p over N tokens."""

    logits: LazyLogits
    temperature: float

    def divergence(self, z: Tensor, log_q: Tensor, part: slice) -> Divergence:
        """Compute KL(p || q) = sum_v p_v (log p_v - log q_v) of some tokens, with its slope.

        Args:
            z: The target's logits, (n, V) fp32.
            log_q: log softmax(z), (n, V) fp32.
            part: The tokens, of N.
        """
        t = self.temperature
        log_p = self.logits.rows(part).float()
        if t != 1:
            log_p, log_q = log_p / t, (z / t).log_softmax(-1)
        log_p = log_p.log_softmax(-1)
        p = log_p.exp()
        kl = log_p.sub_(log_q).mul_(p).sum(-1)
        # d(t^2 KL)/dz = t (q - p)
        return Divergence(kl, t**2 * kl, torch.exp(log_q, out=log_p).sub_(p).mul_(t))

    def chunk(self, part: slice) -> "Full":
        """Return the distributions of some tokens, with their logits made."""
        return Full(LazyLogits(self.logits.rows(part)), self.temperature)


@dataclass(frozen=True)
class TopK:
    """The k likeliest ids of N tokens; all others are lumped into one outcome.

    The divergence over these k + 1 outcomes is at most the one over the whole vocabulary, and 0
    where that is 0. A temperature softens the choice among the k ids alone: with P and Q the mass
    of these ids in p and q at temperature 1, and p', q' the distributions within them at t,

    loss = KL((P, 1 - P) || (Q, 1 - Q)) + t^2 P KL(p' || q')

    At t = 1 that is the divergence over the k + 1 outcomes. Tempered as a whole, most of the mass
    would move to the rest, of which nothing is known.

    Source: Liquid AI, LFM2, arXiv 2511.23404, decoupled and tempered top-K distillation.
    """

    ids: Tensor  # (N, k) int64
    log_p: Tensor  # their log-probabilities at temperature 1, (N, k) fp32
    log_rest: Tensor  # log-probability of all others together, (N,) fp32
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float = 1.0) -> "TopK":
        """Keep the k likeliest ids of logits, (n, V) with k < V."""
        log_p = logits.float().log_softmax(-1)
        top_log_p, ids = log_p.topk(k)
        return cls(ids, top_log_p, _log_rest(log_p, ids), temperature)

    def divergence(self, z: Tensor, log_q: Tensor, part: slice) -> Divergence:
        """Compute the divergence of some tokens with its slope; see `Full`."""
        ids, t = self.ids[part], self.temperature
        log_p, log_rest = self.normal(part)
        log_q_rest = _log_rest(log_q, ids)
        kl = (log_p.exp() * (log_p - log_q.gather(1, ids))).sum(-1)
        kl = kl + log_rest.exp() * (log_rest - log_q_rest)
        # Within the rest p has the target's own proportions: p_v = q_v p_rest / q_rest.
        p = (log_q + (log_rest - log_q_rest)[:, None]).exp().scatter(1, ids, log_p.exp())
        slope = log_q.exp() - p
        if t == 1:
            return Divergence(kl, kl, slope)
        # --- the choice among the k ids: at t in place of 1 ---
        mass = log_p.exp().sum(-1)  # P
        plain, plain_slope = _kl_within(log_p, z.gather(1, ids), 1.0)
        tempered, tempered_slope = _kl_within(log_p, z.gather(1, ids), t)
        outside = kl - mass * plain
        # d(t^2 P KL(p' || q'))/dz = t P (q' - p')
        slope.scatter_add_(1, ids, mass[:, None] * (t * tempered_slope - plain_slope))
        inside = mass * tempered
        return Divergence(outside + inside, outside + t**2 * inside, slope)

    def chunk(self, part: slice) -> "TopK":
        """Return the distributions of some tokens."""
        return replace(
            self, ids=self.ids[part], log_p=self.log_p[part], log_rest=self.log_rest[part]
        )

    def normal(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return `log_p` and `log_rest` of some tokens, made to add up to 1 again.

        Stored values are rounded; a divergence of these is never below 0.
        """
        log_p, log_rest = self.log_p[part], self.log_rest[part]
        total = torch.cat((log_p, log_rest[:, None]), 1).logsumexp(-1)
        return log_p - total[:, None], log_rest - total


def _kl_within(log_p: Tensor, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Compute KL(p' || q') among k ids at a temperature, (n,), and q' - p', (n, k)."""
    log_p, log_q = (log_p / t).log_softmax(-1), (z / t).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), log_q.exp() - log_p.exp()


def _log_rest(log_p: Tensor, ids: Tensor) -> Tensor:
    """Compute the log-probability of all ids but these, (n,)."""
    return log_p.scatter(1, ids, -torch.inf).logsumexp(-1)


class ReferenceSource(Protocol):
    """A reference to learn from: the model itself, or its predictions on disk."""

    @property
    def vocab_size(self) -> int:
        """Number of ids that the reference predicts."""

    def distribution(self, input_ids: Tensor, position: int) -> Full | TopK:
        """Return the distributions of the token after each of (B, T) inputs, N = B x T tokens.

        ``position`` is the place of the first sequence in the order of samples.
        """


class DistillationObjective(TrainingObjective):
    """The distillation loss of a target against its reference; `alpha` may change between steps.

    Args:
        source: The reference; no module, so that FSDP does not take it for a part of the target.
        hidden: The loss on hidden states; None: there is none.

    Source: Hinton et al., arXiv 1503.02531, section 2; Sanyal et al., arXiv 2404.08634.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        source: ReferenceSource,
        alpha: float,
        avoids_logits: bool,
        hidden: HiddenStates | None = None,
    ) -> None:
        super().__init__(model, avoids_logits)
        self.source, self.alpha, self.hidden = source, alpha, hidden

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """Return sums over the labels; see `TrainingObjective.forward`.

        Returns:
            The loss, CE and KL, nats, and with a loss on hidden states their distance, summed over
            layers: (3,) or (4,) fp32. Gradients flow through the first alone, into the target
            alone.
        """
        if labels is None:
            return super().forward(input_ids, use_cache=use_cache)
        labels = labels.flatten()
        if self.hidden is None:
            return loss_sums(*self._run(input_ids), labels, self.alpha)
        with self.hidden.compare(labels != IGNORED) as comparison:
            target, reference = self._run(input_ids)
        sums = loss_sums(target, reference, labels, self.alpha)
        distance = comparison.sum[None]
        sums = torch.cat((sums[:1] + self.hidden.weight * distance, sums[1:], distance))
        slopes = comparison.slopes  # by layer; others lead to no trained weight
        if not slopes:
            return sums
        states = [comparison.states[number] for number in slopes]
        return attach_gradients(sums, list(slopes.values()), states)

    def _run(self, input_ids: Tensor) -> tuple[LazyLogits, Full | TopK]:
        target = lazy_logits(self.model, input_ids, self.avoids_logits)
        return target, self.source.distribution(input_ids, self.position)


def loss_sums(target: LazyLogits, reference: Full | TopK, labels: Tensor, alpha: float) -> Tensor:
    """Sum alpha CE + (1 - alpha) t^2 KL, CE and KL over the N labels: (3,) fp32, nats.

    Where alpha is 0, of the cross-entropy only its value is computed, from what the divergence
    needs anyway.

    Args:
        alpha: Weight of the cross-entropy, in [0, 1]; the KL divergence has the rest.
    """

    def open_chunk(chunk: slice) -> OfBlock:
        made = reference.chunk(chunk)

        def of_block(z: Tensor, y: Tensor, block: slice) -> tuple[Tensor, Tensor]:
            is_label, log_q = y != IGNORED, z.log_softmax(-1)
            # CE = -log softmax(z)[y]
            ce = F.nll_loss(log_q, y, reduction="sum", ignore_index=IGNORED)
            divergence = made.divergence(z, log_q, block)
            kl = torch.where(is_label, divergence.kl, 0).sum()
            weighted_kl = torch.where(is_label, divergence.loss, 0).sum()
            slope = divergence.slope
            if alpha:
                of_ce = cross_entropy_slope(log_q.exp_(), y)
                slope = slope.mul_(1 - alpha).add_(of_ce, alpha=alpha)
            return torch.stack((alpha * ce + (1 - alpha) * weighted_kl, ce, kl)), slope

        return of_block

    return sum_over_tokens(target, labels, open_chunk)
