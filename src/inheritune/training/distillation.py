"""Run a frozen reference beside the target that learns from it.

B batch, T sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inheritune.errors import SourceError
from inheritune.recipe.variants import AlphaSchedule, Hidden
from inheritune.system.processes import ALONE, Processes
from inheritune.training.fsdp import layer_modules, local, mesh_of, shard, whole
from inheritune.training.hardware import Settings
from inheritune.training.hidden_states import HiddenStates
from inheritune.training.kernels import use_fused_gelu
from inheritune.training.kl_divergence import (
    DistillationObjective,
    Full,
    ReferenceSource,
    TopK,
    loss_sums,
)
from inheritune.training.lazy_logits import LazyLogits, lazy_logits
from inheritune.training.loss import logits_are_plain_head_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_MAX_SELF_DIVERGENCE = 1e-4  # nats per token; of equal logits it is 0 up to rounding
_MAX_SLOPE_GAP = 1e-4  # of a gradient whose parts are probabilities times alpha and temperature
_PROVEN_TOKENS = 64
_SCALE = 4096.0  # of a head, see `_has_plain_head`: a power of two, so that its bits come back


@dataclass(frozen=True)
class Distillation:
    """Where the reference's predictions come from, and the weight of the loss on the text."""

    source: ReferenceSource  # the reference, or its stored predictions
    # Weight of the cross-entropy, in [0, 1]; the KL divergence has the rest
    alpha: float | AlphaSchedule
    hidden: Hidden | None = None  # the loss on hidden states; not with stored predictions
    layer_map: Sequence[int] = ()  # index in the reference of each layer of the target, ascending

    @property
    def alpha_changes(self) -> bool:
        """Whether alpha follows the learning rate."""
        return isinstance(self.alpha, AlphaSchedule)

    def alpha_at(self, height: float) -> float:
        """Return alpha at a height of the learning rate, see `optimizer.schedule_height`."""
        return self.alpha.at(height) if isinstance(self.alpha, AlphaSchedule) else self.alpha


@dataclass(frozen=True)
class StoredDistribution:
    """The stored predictions of one micro-batch as a source; see `ReferenceSource`."""

    stored: TopK
    vocab_size: int

    def distribution(self, input_ids: Tensor, position: int) -> TopK:
        """Return what is stored, whatever the inputs."""
        return self.stored


class FrozenReference:
    """A reference that predicts and is never trained; it computes in the dtype of its weights.

    Several processes hold a share of its weights each, and gather a layer while it runs. All of
    them then ask for distributions at the same time.

    Args:
        model: On the CPU, or where it is to run; changed in place. Or what loads it: the processes
            of a machine then load it one after the other, and the machine holds it once.
        processes: Those that share the weights.
    """

    def __init__(
        self,
        model: "PreTrainedModel | Callable[[], PreTrainedModel]",
        settings: Settings,
        temperature: float,
        processes: Processes = ALONE,
    ) -> None:
        self.temperature, self._device = temperature, settings.device
        mesh = mesh_of(processes, settings)

        def place() -> _ReferenceRoot:
            loaded: Any = model if isinstance(model, nn.Module) else model()
            root = _ReferenceRoot(loaded)
            if settings.fused_gelu:
                use_fused_gelu(loaded)
            loaded.eval().requires_grad_(False)
            if mesh is None:
                loaded.to(settings.device)
            else:
                shard(root, loaded, mesh, bf16=False, frees_root=True)
            return root

        self._root = processes.in_turn(place)
        self.model = self._root.model
        self._avoids_logits = self._has_plain_head()

    @property
    def vocab_size(self) -> int:
        """Number of ids that it predicts."""
        return _vocab_size(self.model)

    def distribution(self, input_ids: Tensor, position: int = 0) -> Full:
        """Predict the token after each of (B, T) ids, whatever their place in the order."""
        return Full(self._logits(input_ids, self._avoids_logits), self.temperature)

    def _logits(self, input_ids: Tensor, avoids_logits: bool) -> LazyLogits:
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            hidden = self._root(input_ids.to(self._device), avoids_logits)
            if not avoids_logits:
                return LazyLogits(hidden)
            # What the forward pass gathered is gone: the walk over the tokens takes a while.
            head: Any = self.model.get_output_embeddings()
            bias = getattr(head, "bias", None)
            return LazyLogits(hidden, whole(head.weight), None if bias is None else whole(bias))

    def _has_plain_head(self) -> bool:
        """Return whether its logits are its head's product, in any dtype.

        As `loss.logits_are_plain_head_output`, but for the fused loss, which it does not need.
        """
        head: Any = self.model.get_output_embeddings()
        if head is None or type(head) is not nn.Linear:
            return False
        ids = torch.arange(_PROVEN_TOKENS).remainder(head.weight.shape[0]).view(2, -1)
        with torch.no_grad():
            weight = local(head.weight)
            weight.mul_(_SCALE)
            try:
                from_hidden = self._logits(ids, True).rows(slice(None)).float()
                from_logits = self._logits(ids, False).hidden.float()
            except (AttributeError, TypeError, ValueError, RuntimeError):
                return False
            finally:
                weight.div_(_SCALE)
        most = 1e-4 if head.weight.dtype == torch.float32 else 2e-2  # rounding of either product
        return bool((from_hidden - from_logits).abs().max() <= most * from_logits.abs().max())

    def check_self_divergence(self, samples: Tensor, source: ReferenceSource) -> None:
        """Assert that the reference does not diverge from its own predictions, by the loss.

        Args:
            samples: (B, T + 1) int64, on any device.
        """
        samples = samples.to(self._device)
        with torch.no_grad():
            itself = self.distribution(samples[:, :-1]).logits
            distribution = source.distribution(samples[:, :-1], 0)
            sums = loss_sums(itself, distribution, samples[:, 1:].flatten(), 0.0)
        nats = float(sums[2]) / samples[:, 1:].numel()
        if not abs(nats) < _MAX_SELF_DIVERGENCE:  # NaN fails, too
            raise AssertionError(
                f"the KL divergence of the reference from itself is {nats} nats per token, not 0."
            )


class _ReferenceRoot(nn.Module):
    """A reference as one module that FSDP can gather, up to its head or with it."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, avoids_logits: bool) -> Tensor:
        """Return the last hidden states, (N, D), or the logits, (N, V)."""
        return lazy_logits(self.model, input_ids, avoids_logits).hidden


def make_objective(
    model: "PreTrainedModel", distillation: Distillation, samples: Tensor, later: bool = False
) -> DistillationObjective:
    """Make the loss of a target against its reference, and prove its value and its gradient.

    The processes of a shared reference run it at the same time. Its value: the divergence of the
    reference from itself is 0; of stored predictions that was proven when they were written. Its
    gradient: see `_check_slope`.

    Args:
        samples: The first micro-batch in the order of samples, (B, T + 1) int64, on the device of
            the training.
        later: Whether the processes make the objective in turn, and call its `proof` together.

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
    alpha, avoids_logits = distillation.alpha_at(1.0), logits_are_plain_head_output(model)
    hidden = None
    if distillation.hidden is not None:
        assert isinstance(source, FrozenReference)  # no hidden states are stored
        layers = layer_modules(model), layer_modules(source.model)
        hidden = HiddenStates(*layers, distillation.layer_map, distillation.hidden)
    objective = DistillationObjective(model, source, alpha, avoids_logits, hidden)
    z = _first_logits(objective, samples)

    def proof() -> None:
        if isinstance(source, FrozenReference):
            source.check_self_divergence(samples, source)
        _check_slope(objective, samples, z)

    if later:
        objective.proof = proof
    else:
        proof()
    return objective


def _first_logits(objective: DistillationObjective, samples: Tensor) -> Tensor:
    """Compute the target's logits of a few tokens, (n, V) fp32, on the device of the samples.

    No others are run: where processes do this in turn, it is on a CPU, and the others wait.
    """
    was_training = objective.model.training
    objective.model.eval()
    with torch.no_grad():
        # A model that is too large for one device is not there yet.
        few = samples[:1, :-1][:, :_PROVEN_TOKENS]
        own_ids = few.to(next(objective.model.parameters()).device)
        logits = lazy_logits(objective.model, own_ids, objective.avoids_logits)
        z = logits.cast().rows(slice(None)).float().to(samples.device)
    objective.model.train(was_training)
    return z


def _check_slope(objective: DistillationObjective, samples: Tensor, z: Tensor) -> None:
    """Assert that the loss has the gradient of its formula, at the target's logits z.

    With q = softmax(z / t) and the reference's p, dloss/dz = alpha (softmax(z) - onehot) +
    (1 - alpha) t (q - p); of stored predictions see `kl_divergence.TopK`. The loss of a step is
    this one divided by the step's tokens.
    """
    input_ids, labels = samples[:1, :-1], samples[0, 1:]
    few = slice(0, _PROVEN_TOKENS)
    distribution = objective.source.distribution(input_ids, 0)
    for alpha in {0.0, objective.alpha}:
        leaf = z.clone().requires_grad_()
        sums = loss_sums(LazyLogits(leaf), distribution, labels[few], alpha)
        (slope,) = torch.autograd.grad(sums[0], leaf)
        onehot = torch.nn.functional.one_hot(labels[few], z.shape[1])
        of_kl = _slope_by_formula(z, distribution, few)
        expected = alpha * (z.softmax(-1) - onehot) + (1 - alpha) * of_kl
        gap = float((slope - expected).abs().max())
        if not gap < _MAX_SLOPE_GAP * max(1.0, float(expected.abs().max())):  # NaN fails, too
            raise AssertionError(
                f"the gradient of the loss at the target's logits is off by {gap}: with alpha "
                f"{alpha:g} it is not that of its formula."
            )


def _slope_by_formula(z: Tensor, distribution: Full | TopK, few: slice) -> Tensor:
    """Compute t (q - p) of some tokens, (n, V), in another way than the loss does."""
    t = distribution.temperature
    if isinstance(distribution, Full):
        p = (distribution.logits.rows(few).float() / t).softmax(-1)
        return t * ((z / t).softmax(-1) - p)
    q, ids = z.softmax(-1), distribution.ids[few]
    log_p, log_rest = distribution.normal(few)
    inner = torch.zeros_like(z, dtype=torch.bool).scatter(1, ids, True)
    mass, q_mass = log_p.exp().sum(-1, keepdim=True), (q * inner).sum(-1, keepdim=True)
    q_rest = (q * ~inner).sum(-1, keepdim=True)
    # The mass of the k ids: q - r, where r has the reference's mass in the target's proportions.
    r = torch.where(inner, mass * q / q_mass, log_rest.exp()[:, None] * q / q_rest)
    within = (z.gather(1, ids) / t).softmax(-1) - (log_p / t).softmax(-1)
    return (q - r).scatter_add(1, ids, t * mass * within)


def _vocab_size(model: "PreTrainedModel") -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
