"""Compare hidden states of a target with those of its reference, while the two run.

N tokens, D hidden, n layers of the target. a, b: hidden states after a layer of the target and
after the layer of the reference that it is compared with, (N, D).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.errors import SourceError
from inheritune.recipe.variants import Hidden

_TINY = 1e-12  # least norm, and least square of one


def compared_layers(layer_map: Sequence[int], reference_layers: int) -> list[int]:
    """List the layers of the reference whose hidden states the target's layers are to reach.

    Layer j of the target is followed by layer map[j + 1] of the reference, which expects the state
    after layer map[j + 1] - 1; the last one by the final norm, which expects that after N - 1.

    Args:
        layer_map: Index in the reference of each layer of the target, ascending.
        reference_layers: N.
    """
    return [after - 1 for after in layer_map[1:]] + [reference_layers - 1]


@dataclass
class Comparison:
    """The pairs of one micro-batch that were compared so far."""

    is_label: Tensor  # whether a token counts, (N,)
    sum: Tensor  # of the distances, over tokens and layers; scalar, fp32
    states: dict[int, Tensor] = field(default_factory=dict)  # of the target, by layer
    versions: dict[int, int] = field(default_factory=dict)  # of these tensors
    slopes: dict[int, Tensor] = field(default_factory=dict)  # d(weight x sum)/d(state)


class HiddenStates:
    """The loss on hidden states: weight x the distances, summed over layers and tokens.

    The target runs first. Its states are only referred to: autograd holds them. Then the reference
    runs, and each of its states is compared when it appears, and let go. Only the slopes, one
    tensor like a state for each layer, are held until the backward pass.

    The hooks stay on the layers and do nothing outside of `compare`: not in validations, nor where
    a layer is computed again in the backward pass.

    Args:
        target: Layers of the target.
        reference: Layers of the reference.
        layer_map: See `compared_layers`.

    Source: Boomerang distillation, arXiv 2510.05064: cosine, weight 2, summed over layers.
    """

    def __init__(
        self,
        target: Sequence[nn.Module],
        reference: Sequence[nn.Module],
        layer_map: Sequence[int],
        section: Hidden,
    ) -> None:
        self.weight = section.weight
        self._distance = {"cosine": _cosine, "nmse": _nmse}[section.loss]
        self._comparison: Comparison | None = None
        for number, layer in enumerate(target):
            layer.register_forward_hook(_eager(partial(self._remember, number)))
        for number, place in enumerate(compared_layers(layer_map, len(reference))):
            reference[place].register_forward_hook(_eager(partial(self._compare, number)))

    @contextmanager
    def compare(self, is_label: Tensor) -> Iterator[Comparison]:
        """Compare the states of the forward passes in this block: the target's, then the other.

        Args:
            is_label: Whether a token counts, (N,).
        """
        zero = torch.zeros((), dtype=torch.float32, device=is_label.device)
        self._comparison = Comparison(is_label, zero)
        try:
            yield self._comparison
        finally:
            self._comparison = None

    def _remember(self, number: int, layer: nn.Module, _: Any, output: Any) -> None:
        if self._comparison is not None:
            state = _state(output)
            self._comparison.states[number] = state
            self._comparison.versions[number] = state._version

    def _compare(self, number: int, layer: nn.Module, _: Any, output: Any) -> None:
        comparison = self._comparison
        if comparison is None:
            return
        a, b = comparison.states[number], _state(output)
        if a.shape != b.shape or a.shape[:-1].numel() != len(comparison.is_label):
            raise SourceError(
                f"hidden states of {type(layer).__name__} cannot be compared: the target's have "
                f"the shape {tuple(a.shape)}, the reference's {tuple(b.shape)}.",
                "Leave distill.hidden out.",
            )
        if a._version != comparison.versions[number]:
            raise SourceError(
                f"hidden states of {type(layer).__name__} are overwritten by the layer behind it.",
                "Leave distill.hidden out.",
            )
        with torch.no_grad():
            rows = a.detach().flatten(0, -2).float(), b.flatten(0, -2).float()
            distance, slope = self._distance(*rows)
            comparison.sum += (distance * comparison.is_label).sum()
            if a.requires_grad:
                slope = self.weight * slope * comparison.is_label[:, None]
                comparison.slopes[number] = slope.to(a.dtype).view_as(a)


def _eager(hook: Callable[..., None]) -> Callable[..., None]:
    """Keep a hook out of what torch.compile traces of its layer."""
    outside: Callable[..., None] = torch.compiler.disable(hook)
    return outside


def _state(output: Any) -> Tensor:
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def _cosine(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute 1 - cos(a, b), in [0, 2], (N,), and its slope in a, (N, D)."""
    # with u = a/|a|, v = b/|b|:  d(1 - u.v)/da = ((u.v) u - v) / |a|
    norm = a.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    u, v = a / norm, b / b.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    cosine = (u * v).sum(-1, keepdim=True)
    return 1 - cosine[:, 0], (cosine * u - v) / norm


def _nmse(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute |a - b|^2 / |b|^2, (N,), and its slope 2 (a - b) / |b|^2 in a, (N, D)."""
    square = b.square().sum(-1, keepdim=True).clamp_min(_TINY)
    gap = a - b
    return gap.square().sum(-1) / square[:, 0], 2 * gap / square
