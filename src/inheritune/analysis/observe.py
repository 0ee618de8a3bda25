"""Observe every attention matrix of a running model, one layer at a time.

B sequences, H heads, T tokens, D hidden.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inheritune.errors import UnsupportedModelError
from inheritune.training.layers import watched_by

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


OBSERVED_ATTENTION = "inheritune_observed"
_TINY = 1e-4  # weight above the diagonal, or missing in a row sum, that is rounding

# Called with a layer index and its weights, (B, H, T, T).
AttentionSink = Callable[[int, "Tensor"], None]


@contextmanager
def observed(
    model: "PreTrainedModel", layers: Sequence[nn.Module], sink: AttentionSink
) -> Iterator[None]:
    """Call a sink with every attention matrix while the block runs.

    The weights come from the model's own eager function, with its windows, soft-caps and sinks. A
    model that looks attention functions up by name gets one that calls its own and drops the
    weights; any other is run with ``output_attentions``, and hooks take the weights out of what its
    modules return. At most the matrices of one layer are in memory.

    Args:
        model: A model in evaluation mode; it gets its own attention back when the block ends.
        layers: The layers of the model, from `training.layers.find_layers`.
        sink: Receives layer index and fp32 weights: several times if a layer has several
            attentions, never if the model shows none.
    """
    current = _Current(sink)
    with watched_by(layers, current.enter, current.leave):
        if _takes_functions(model):
            with _registered(current), _attending_by(model, OBSERVED_ATTENTION):
                yield
        else:
            with _attending_by(model, "eager"), _hooked(model, layers, current):
                yield


@contextmanager
def _attending_by(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Set the attention of every config of a model while the block runs.

    `set_attn_implementation` would refuse if a tower that does not run, such as vision, has no
    attention of that name.
    """
    from transformers import PreTrainedModel

    modules = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    configs = list({id(module.config): module.config for module in modules}.values())
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


class _Current:
    """Remembers which layer is running, and hands its weights to the sink."""

    def __init__(self, sink: AttentionSink) -> None:
        self._sink = sink
        self._number: int | None = None

    def enter(self, number: int, hidden: "Tensor") -> None:
        self._number = number

    def leave(self, number: int, hidden: "Tensor") -> None:
        self._number = None

    def show(self, weights: "Tensor") -> None:
        if self._number is not None:  # not for attention outside of the layers
            self._sink(self._number, weights.detach().float())


def _takes_functions(model: "PreTrainedModel") -> bool:
    """Tell whether the model looks attention up by name, and its file has an eager function."""
    return model._can_set_attn_implementation() and _eager_of(model) is not None


def _eager_of(module: nn.Module) -> Callable[..., Any] | None:
    # In the file of the class, or of a class it inherits from.
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    return None


@contextmanager
def _registered(current: _Current) -> Iterator[None]:
    """Offer `OBSERVED_ATTENTION` to the models of transformers while the block runs."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    def attend(module: nn.Module, *args: Any, **kwargs: Any) -> "tuple[Tensor, None]":
        eager = _eager_of(module)
        if eager is None:
            raise UnsupportedModelError(
                f"the attention of {type(module).__name__} cannot be observed: it has no eager "
                "function.",
                "Leave analyze out.",
            )
        out, weights = eager(module, *args, **kwargs)
        current.show(weights)
        return out, None

    AttentionInterface.register(OBSERVED_ATTENTION, attend)
    AttentionMaskInterface.register(OBSERVED_ATTENTION, eager_mask)
    try:
        yield
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(OBSERVED_ATTENTION, None)


@contextmanager
def _hooked(
    model: "PreTrainedModel", layers: Sequence[nn.Module], current: _Current
) -> Iterator[None]:
    """Take the weights out of the outputs of the modules inside the layers."""

    def take(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if type(output) not in (tuple, list):  # an output class of transformers
            return None
        parts = []
        for part in output:
            is_attention = looks_like_attention(part)
            if is_attention:
                current.show(part)
            parts.append(part.new_empty(0) if is_attention else part)
        return type(output)(parts)

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"output_attentions": True}

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(ask, with_kwargs=True))
        for layer in layers:
            for module in layer.modules():
                if module is not layer:
                    hooks.enter_context(module.register_forward_hook(take))
        yield


def looks_like_attention(value: Any) -> bool:
    """Tell whether a value is causal attention: (B, H, T, T), each row with a sum of at most 1."""
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or not value.is_floating_point():
        return False
    size = value.shape[-1]
    if value.shape[-2] != size or size < 2:
        return False
    sums = value.float().sum(-1)
    above = float(value.float().triu(1).abs().max())
    return bool(value.min() >= 0) and float(sums.max()) <= 1 + _TINY and above <= _TINY
