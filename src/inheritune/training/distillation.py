"""Run a frozen reference beside the target that learns from it.

B batch, T sequence.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inheritune.errors import SourceError
from inheritune.training.hardware import Settings
from inheritune.training.kernels import use_fused_gelu
from inheritune.training.kl_divergence import DistillationObjective, Full, ReferenceSource, TopK
from inheritune.training.loss import lazy_logits, logits_are_plain_head_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_MAX_SELF_DIVERGENCE = 1e-4  # nats per token; of equal logits it is 0 up to rounding


@dataclass(frozen=True)
class Distillation:
    """Where the reference's predictions come from, and the weight of the loss on the text."""

    source: ReferenceSource  # the reference, or its stored predictions
    alpha: float  # weight of the cross-entropy, in [0, 1]; the KL divergence has the rest


@dataclass(frozen=True)
class StoredDistribution:
    """The stored predictions of one micro-batch as a source; see `ReferenceSource`."""

    stored: TopK
    vocab_size: int
    temperature: float

    def distribution(self, input_ids: Tensor, position: int) -> TopK:
        """Return what is stored, whatever the inputs."""
        return self.stored


class FrozenReference:
    """A reference that predicts and is never trained, whole and in fp32 in every process."""

    def __init__(self, model: "PreTrainedModel", settings: Settings, temperature: float) -> None:
        self.model = model
        self.temperature = temperature
        if settings.fused_gelu:
            use_fused_gelu(model)
        model.to(settings.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self._device, self._bf16 = settings.device, settings.precision == "bf16"
        self._avoids_logits = logits_are_plain_head_output(model)

    @property
    def vocab_size(self) -> int:
        """Number of ids that it predicts."""
        return _vocab_size(self.model)

    def distribution(self, input_ids: Tensor, position: int = 0) -> Full:
        """Predict the token after each of (B, T) ids, whatever their place in the order."""
        with torch.no_grad(), self._autocast():
            logits = lazy_logits(self.model, input_ids.to(self._device), self._avoids_logits)
            return Full(logits.cast(), self.temperature)

    def check_self_divergence(self, samples: Tensor, source: ReferenceSource) -> None:
        """Assert that the reference does not diverge from its own predictions, by the loss.

        Args:
            samples: (B, T + 1) int64, on any device.
        """
        samples = samples.to(self._device)
        itself = DistillationObjective(self.model, source, 0.0, self._avoids_logits)
        with torch.no_grad(), self._autocast():
            sums = itself(samples[:, :-1], samples[:, 1:])
        nats = float(sums[2]) / samples[:, 1:].numel()
        if not abs(nats) < _MAX_SELF_DIVERGENCE:  # NaN fails, too
            raise AssertionError(
                f"the KL divergence of the reference from itself is {nats} nats per token, not 0."
            )

    def _autocast(self) -> torch.autocast:
        # On also where processes gather the target in bf16: the reference is there in fp32.
        return torch.autocast(self._device, torch.bfloat16, enabled=self._bf16)


def make_objective(
    model: "PreTrainedModel", distillation: Distillation, samples: Tensor
) -> DistillationObjective:
    """Make the loss of a target against its reference, and check it on a copy of the reference.

    The check takes a micro-batch, (B, T + 1) int64. Stored predictions were checked when they were
    written.

    Raises:
        SourceError: The two models do not predict the same number of ids.
    """
    source = distillation.source
    target_ids, reference_ids = _vocab_size(model), source.vocab_size
    if target_ids != reference_ids:
        raise SourceError(
            f"the target predicts {target_ids} ids and its reference {reference_ids}: there is no "
            "divergence between distributions over different ids.",
            "Give both the same vocabulary, or leave distill out.",
        )
    objective = DistillationObjective(
        model, source, distillation.alpha, logits_are_plain_head_output(model)
    )
    if isinstance(source, FrozenReference):
        source.check_self_divergence(samples, source)
    return objective


def _vocab_size(model: "PreTrainedModel") -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
