"""Find the layers of a live model, and watch what passes through them.

B sequences, T tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from inheritune.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def find_layers(model: "PreTrainedModel", total: int) -> list[nn.Module]:
    """Find the layers of a model: the largest module list with ``total`` entries.

    Raises:
        UnsupportedModelError: The model has no such list.
    """
    return list(_find_list(model, total)[1])


def moved_names(model: "PreTrainedModel", places: Sequence[int]) -> Callable[[str], str]:
    """Return a function that gives a weight of a smaller model its name in this one.

    Args:
        model: The larger model.
        places: Index in it of each layer of the smaller model, ascending.
    """
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    before = f"{_find_list(model, total)[0]}."

    def name_of(name: str) -> str:
        number, dot, rest = name.removeprefix(before).partition(".")
        if not name.startswith(before) or not number.isdecimal():
            return name
        return f"{before}{places[int(number)]}{dot}{rest}"

    return name_of


def _find_list(model: "PreTrainedModel", total: int) -> tuple[str, nn.ModuleList]:
    candidates: list[tuple[int, str, nn.ModuleList]] = []  # parameters, name, list
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for _, outer, _ in candidates)
        if isinstance(module, nn.ModuleList) and len(module) == total and not nested:
            candidates.append((sum(p.numel() for p in module.parameters()), name, module))
    if not candidates:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of {total} layers.",
            "What passes through its layers cannot be watched: leave out what needs that.",
        )
    return max(candidates, key=lambda candidate: candidate[0])[1:]


@contextmanager
def watched_by(
    layers: Sequence[nn.Module],
    before: Callable[[int, "Tensor"], None],
    after: Callable[[int, "Tensor"], "Tensor | None"],
    only: int | None = None,
) -> Iterator[None]:
    """Call functions with the input and output of each layer while the block runs.

    Args:
        before: Receives a layer index and the layer's input, (B, T, D).
        after: Receives a layer index and the layer's output. A tensor that it returns replaces the
            output.
        only: Index of the one layer to watch; None: all layers.
    """

    def enter(
        number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        before(number, args[0] if args else kwargs["hidden_states"])

    def leave(number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        is_sequence = isinstance(output, tuple | list)
        new = after(number, output[0] if is_sequence else output)
        return (new, *output[1:]) if is_sequence and new is not None else new

    with ExitStack() as hooks:
        for number, module in enumerate(layers):
            if only in (None, number):
                before_hook = partial(enter, number)
                hooks.enter_context(module.register_forward_pre_hook(before_hook, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(partial(leave, number)))
        yield
