"""A target that also learns from its frozen reference, which runs beside it or has run before.

B batch, T sequence.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inheritune.errors import SourceError
from inheritune.training.hardware import Settings
from inheritune.training.kernels import use_fused_gelu
from inheritune.training.kl_divergence import Full, ReferenceDistribution, loss_sums, scores_of
from inheritune.training.logit_cache import LogitCache
from inheritune.training.loss import logits_are_plain_head_output

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["Distillation", "DistillationLoss", "FrozenReference"]

_NO_DIVERGENCE = 1e-4  # nats per token; of equal logits it is 0 up to rounding


class FrozenReference:
    """A reference that is asked for its distributions and never trained, whole in every process.

    It is no module: what stands around the target must not take it for a part of the target.

    Args:
        model: fp32 weights; moved to the device and frozen, in evaluation mode.
        settings: Device, precision and kernels of the target's training.
    """

    def __init__(self, model: "PreTrainedModel", settings: Settings) -> None:
        self.model = model
        if settings.fused_gelu:
            use_fused_gelu(model)
        model.to(settings.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self._device, self._bf16 = settings.device, settings.precision == "bf16"
        self._by_head = logits_are_plain_head_output(model)

    @property
    def vocab_size(self) -> int:
        """Ids that it predicts."""
        return _vocab_size(self.model)

    def whole(self, input_ids: "Tensor", temperature: float) -> Full:
        """Its distributions behind every token.

        Args:
            input_ids: (B, T) int64, anywhere.
            temperature: Of the distributions.
        """
        with torch.no_grad(), self._autocast():
            scores = scores_of(self.model, input_ids.to(self._device), self._by_head)
            return Full(scores.cast(), temperature)

    def check(self, samples: "Tensor", theirs: ReferenceDistribution, temperature: float) -> None:
        """See that a copy of the reference has no divergence from it, by the loss's own code.

        Args:
            samples: (B, T + 1) int64, anywhere.
            theirs: What a target would be compared with over these samples.
            temperature: Of the distributions.

        Raises:
            AssertionError: It has: the mistake is ours.
        """
        samples = samples.to(self._device)
        with torch.no_grad(), self._autocast():
            copy = scores_of(self.model, samples[:, :-1], self._by_head)
            sums = loss_sums(copy, theirs, samples[:, 1:].flatten(), 0.0, temperature)
        found = float(sums[2]) / samples[:, 1:].numel()
        if not abs(found) < _NO_DIVERGENCE:  # NaN is none either
            raise AssertionError(
                f"the KL divergence of the reference from itself is {found} nats per token, not 0."
            )

    def _autocast(self) -> torch.autocast:
        # Asked for even where processes gather the target in bf16: this one is there in fp32.
        return torch.autocast(self._device, torch.bfloat16, enabled=self._bf16)


@dataclass(frozen=True)
class Distillation:
    """What a target learns from besides the text.

    Attributes:
        source: The reference, or what it has said.
        alpha: Share of the cross-entropy in the loss, in [0, 1]; the rest is the divergence's.
        temperature: Both models' logits are divided by it for the divergence, above 0.
    """

    source: FrozenReference | LogitCache
    alpha: float
    temperature: float


class DistillationLoss:
    """alpha x CE + (1 - alpha) x temperature^2 x KL(reference || target), summed over tokens.

    CE is the cross-entropy of the text, KL is summed over the vocabulary (of what was stored, over
    the outcomes there); both are sums over the same tokens, so that a step split into any number of
    micro-batches has the same gradient. Where logits are the head's product and nothing more, they
    are made a chunk of tokens at a time, of both models, and never held whole.

    Args:
        model: The target.
        wanted: Whom it learns from, and the weights of the terms.

    Attributes:
        chunked_head: Whether the target's logits are never held whole.
        position: Place of the next micro-batch in the order of samples.

    Raises:
        SourceError: The two models do not predict the same number of ids.

    Source: Hinton et al., arXiv 1503.02531, section 2; Sanyal et al., arXiv 2404.08634.
    """

    def __init__(self, model: "PreTrainedModel", wanted: Distillation) -> None:
        ours, theirs = _vocab_size(model), wanted.source.vocab_size
        if ours != theirs:
            raise SourceError(
                f"the target predicts {ours} ids and its reference {theirs}: there is no "
                "divergence between distributions over different ids.",
                "Give both the same vocabulary, or leave distill out.",
            )
        self._wanted = wanted
        self.chunked_head = logits_are_plain_head_output(model)
        self.position = 0

    def __call__(self, model: "nn.Module", input_ids: "Tensor", labels: "Tensor") -> "Tensor":
        """The loss, and what it is made of: CE and KL; see `loss_sums`.

        Args:
            model: The target.
            input_ids: (B, T) int64; of a stored reference, the samples at `position`.
            labels: (B, T) int64; -100 where nothing is to be predicted.
        """
        wanted, theirs = self._wanted, self._theirs(input_ids)
        ours = scores_of(model, input_ids, self.chunked_head)
        return loss_sums(ours, theirs, labels.flatten(), wanted.alpha, wanted.temperature)

    def check(self, samples: "Tensor") -> None:
        """See `FrozenReference.check`; what is stored was checked when it was written."""
        source, temperature = self._wanted.source, self._wanted.temperature
        if isinstance(source, FrozenReference):
            source.check(samples, source.whole(samples[:, :-1], temperature), temperature)

    @property
    def beside(self) -> "PreTrainedModel | None":
        """The reference, where it runs beside the target."""
        source = self._wanted.source
        return source.model if isinstance(source, FrozenReference) else None

    def _theirs(self, input_ids: "Tensor") -> ReferenceDistribution:
        source = self._wanted.source
        if isinstance(source, FrozenReference):
            return source.whole(input_ids, self._wanted.temperature)
        return source.look_up(self.position, len(input_ids), input_ids.device)


def _vocab_size(model: "PreTrainedModel") -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
