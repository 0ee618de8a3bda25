"""Look at every attention matrix of a model while it runs, and keep none.

B sequences, H heads, T tokens, D hidden.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inheritune.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = [
    "AttentionSink",
    "Layers",
    "find_layers",
    "looks_like_attention",
    "observed",
    "watched_by",
]

OBSERVED_ATTENTION = "inheritune_observed"
_TINY = 1e-4  # weight above the diagonal, or missing in a row sum, that is rounding

# Given the number of a layer and its weights, (B, H, T, T).
AttentionSink = Callable[[int, "Tensor"], None]


@dataclass(frozen=True)
class Layers:
    """The layers of a live model.

    Attributes:
        name: Of their list, such as ``"model.layers"``.
        modules: From the input on.
    """

    name: str
    modules: list[nn.Module]


def find_layers(model: "PreTrainedModel", total: int) -> Layers:
    """The list of a model's layers.

    Args:
        model: A causal language model.
        total: How many its config says.

    Raises:
        UnsupportedModelError: It has no list of so many modules.
    """
    found: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for _, outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == total and not nested:
            found.append((sum(p.numel() for p in module.parameters()), name, module))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of {total} layers.",
            "Its attention cannot be observed; leave the analysis out.",
        )
    _, name, modules = max(found, key=lambda candidate: candidate[0])
    return Layers(name, list(modules))


@contextmanager
def observed(model: "PreTrainedModel", layers: Layers, sink: AttentionSink) -> Iterator[None]:
    """While the block runs, show every attention matrix to a sink.

    The weights are those that the model's own eager function computes, with its windows,
    soft-caps and sinks. A model that takes attention functions by name is given one that calls its
    own and drops the weights; any other is asked for its weights, which a hook takes out of what
    its modules return. At most the matrices of one layer are in memory.

    Args:
        model: In evaluation mode; returned to its own attention afterwards.
        layers: Of the model.
        sink: Given each layer's number and its weights, fp32; a layer may have several attentions.

    Raises:
        UnsupportedModelError: The model runs, but shows no attention: raised by whoever counts
            what the sink was given, see `attention.measure_attention`.
    """
    current = _Current(sink)
    with watched_by(layers, current.enter, current.leave):
        if _takes_functions(model):
            _register(current)
            try:
                with _attending_by(model, OBSERVED_ATTENTION):
                    yield
            finally:
                _unregister()
            return
        with _attending_by(model, "eager"), _hooked(model, layers, current):
            yield


@contextmanager
def watched_by(
    layers: Layers,
    before: Callable[[int, "Tensor"], None],
    after: Callable[[int, "Tensor"], "Tensor | None"],
    only: int | None = None,
) -> Iterator[None]:
    """While the block runs, tell what goes into each layer and what comes out.

    Args:
        layers: Of a model.
        before: Given a layer's number and the hidden states it is given.
        after: Given a layer's number and its hidden states; what it returns takes their place,
            unless it is None.
        only: The one layer that is meant; None: all.
    """

    def enter(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before(number, args[0] if args else kwargs["hidden_states"])

        return hook

    def leave(number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple | list) else output
            other = after(number, hidden)
            if other is None:
                return None
            return (other, *output[1:]) if isinstance(output, tuple | list) else other

        return hook

    handles = []
    try:
        for number, module in enumerate(layers.modules):
            if only not in (None, number):
                continue
            handles.append(module.register_forward_pre_hook(enter(number), with_kwargs=True))
            handles.append(module.register_forward_hook(leave(number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _attending_by(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Name an attention in every config of a model, and put back what stood in each.

    As `set_attn_implementation` does, which refuses where a tower that takes no part cannot.
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
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation_internal = own


class _Current:
    """Which layer is running, and where its weights go."""

    def __init__(self, sink: AttentionSink) -> None:
        self._sink = sink
        self._number: int | None = None

    def enter(self, number: int, hidden: "Tensor") -> None:
        self._number = number

    def leave(self, number: int, hidden: "Tensor") -> None:
        self._number = None

    def show(self, weights: "Tensor") -> None:
        if self._number is not None:  # attention outside the layers is none of theirs
            self._sink(self._number, weights.detach().float())


def _takes_functions(model: "PreTrainedModel") -> bool:
    """Whether its attention is called by name, and its file has an eager one of its own."""
    return model._can_set_attn_implementation() and _eager_of(model) is not None


def _eager_of(module: nn.Module) -> Callable[..., Any] | None:
    # The file of the class, or that of a class it was derived from.
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return None


def _register(current: _Current) -> None:
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


def _unregister() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(OBSERVED_ATTENTION, None)


@contextmanager
def _hooked(model: "PreTrainedModel", layers: Layers, current: _Current) -> Iterator[None]:
    """Take the weights out of what the modules inside the layers return."""

    def take(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if type(output) not in (tuple, list):  # an output class of transformers
            return None
        kept = []
        for part in output:
            seen = looks_like_attention(part)
            if seen:
                current.show(part)
            kept.append(part.new_empty(0) if seen else part)
        return type(output)(kept)

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"output_attentions": True}

    handles = [model.register_forward_pre_hook(ask, with_kwargs=True)]
    try:
        for layer in layers.modules:
            inside = (module for module in layer.modules() if module is not layer)
            handles += [module.register_forward_hook(take) for module in inside]
        yield
    finally:
        for handle in handles:
            handle.remove()


def looks_like_attention(value: Any) -> bool:
    """Whether a value is causal attention: (B, H, T, T), rows of weights that sum to 1 at most."""
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or not value.is_floating_point():
        return False
    size = value.shape[-1]
    if value.shape[-2] != size or size < 2:
        return False
    sums = value.float().sum(-1)
    above = float(value.float().triu(1).abs().max())
    return bool(value.min() >= 0) and float(sums.max()) <= 1 + _TINY and above <= _TINY
