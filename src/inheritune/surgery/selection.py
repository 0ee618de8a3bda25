"""Which layers of a reference to keep, as people write it."""

import re
from collections.abc import Sequence
from itertools import pairwise

from inheritune.errors import RecipeError, escape

__all__ = ["check_selection", "choose_layers", "describe_selection", "select_layers"]

_FORMS = "13, first:13, last:13, middle:13, first+last:12+1, every:2, or a list such as 0-11,24,25"
_CHOICES = "first, last, middle, first+last, strided, lazy, or a list such as 0-11,24,25"
_DIGITS = r"[0-9]{1,6}"


def select_layers(text: str, total: int) -> tuple[int, ...]:
    """The layers that a text asks for, counted from 0.

    Args:
        text: ``"13"`` or ``"first:13"``, ``"last:13"``, ``"middle:13"`` (begins at half of what is
            left over, rounded down), ``"first+last:12+1"``, ``"every:2"`` (0, 2, 4, ...), or a list
            of layers and ranges with both ends, ``"0-11,24,25"``.
        total: Layers of the reference.

    Returns:
        Ascending, without repeats, at least one.

    Raises:
        RecipeError: The text has none of these forms, or asks for layers that are not there.

    Source of the named choices: Sanyal et al., Inheritune, arXiv 2404.08634, and its controls.
    """
    text = text.strip()
    if re.fullmatch(_DIGITS, text):
        return _first(int(text), total)
    if found := re.fullmatch(rf"(first|last|middle|every):({_DIGITS})", text):
        return _named(found[1], int(found[2]), total)
    if found := re.fullmatch(rf"first\+last:({_DIGITS})\+({_DIGITS})", text):
        first, last = int(found[1]), int(found[2])
        _refuse_count(first + last, total)
        return (*range(first), *range(total - last, total))
    if re.fullmatch(rf"{_DIGITS}(-{_DIGITS})?(,{_DIGITS}(-{_DIGITS})?)*", text):
        return check_selection(_listed(text, total), total)
    raise RecipeError(f"{escape(text)!r} does not say which layers to keep.", f"Write {_FORMS}.")


def choose_layers(
    choice: str | None, count: int | None, total: int, layers_by_rank: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The layers of a choice whose number may be decided elsewhere.

    Args:
        choice: ``"first"``, ``"last"``, ``"middle"``, ``"first+last"`` (all but one from the
            beginning), ``"strided"`` (layer i of n is round(i (N - 1) / (n - 1))), ``"lazy"``
            (those of lowest attention rank); or a text of `select_layers` that says itself how
            many; None: the first.
        count: How many; None where only the text says it.
        total: Layers of the reference, N.
        layers_by_rank: Those that have attention, that of lowest rank first; None: not measured
            yet, and the last layers stand for the lazy ones.

    Returns:
        Ascending, without repeats, at least one.

    Raises:
        RecipeError: There is no such choice, it asks for layers that are not there, or for more
            or fewer than `count`.
    """
    choice = "first" if choice is None else choice.strip()
    if choice == "lazy" and layers_by_rank is not None and count is not None:
        if count > len(layers_by_rank):
            raise RecipeError(
                f"lazy asks for {count} layers, but {len(layers_by_rank)} have attention.",
                "Choose fewer layers, or another select.",
            )
        return tuple(sorted(layers_by_rank[:count]))
    if not re.search("[0-9]", choice):
        return _counted(choice, count, total)
    if re.fullmatch(_DIGITS, choice):
        raise RecipeError(
            f"{choice!r} may mean a layer or a number of layers.",
            f"Write {choice}-{choice} for that layer alone; a number of layers stands in layers.",
        )
    kept = select_layers(choice, total)
    if count is not None and len(kept) != count:
        raise RecipeError(
            f"{escape(choice)!r} keeps {len(kept)} layers, not {count}.", "Leave the number out."
        )
    return kept


def _counted(choice: str, count: int | None, total: int) -> tuple[int, ...]:
    if choice not in ("first", "last", "middle", "first+last", "strided", "lazy"):
        raise RecipeError(
            f"{escape(choice)!r} does not say which layers to keep.", f"Write {_CHOICES}."
        )
    if count is None:
        raise RecipeError(f"{choice} does not say how many layers.", "Give a number of layers.")
    if choice == "first+last":
        if count < 2:
            raise RecipeError("first+last needs two layers at least.", "Choose more layers.")
        return select_layers(f"first+last:{count - 1}+1", total)
    if choice != "strided":
        return _named("last" if choice == "lazy" else choice, count, total)
    _refuse_count(count, total)
    # Half up, in integers: floats round halves to even, and so not always to the same side.
    steps = max(count - 1, 1)
    return tuple((2 * i * (total - 1) + steps) // (2 * steps) for i in range(count))


def check_selection(kept: Sequence[int], total: int) -> tuple[int, ...]:
    """A list of layers, if it is ascending, without repeats, and within the reference.

    Raises:
        RecipeError: It is not.
    """
    if not kept:
        raise RecipeError("no layer is asked for.", f"Choose among 0 to {total - 1}.")
    for layer in kept:
        if not 0 <= layer < total:
            raise RecipeError(
                f"there is no layer {layer}: the reference has {total}, counted from 0.",
                f"Choose among 0 to {total - 1}.",
            )
    for before, after in pairwise(kept):
        if after <= before:
            what = "stands twice" if after == before else f"comes after layer {before}"
            raise RecipeError(f"layer {after} {what}.", "List each layer once, in its order.")
    return tuple(kept)


def describe_selection(kept: Sequence[int]) -> str:
    """``"layers 0-11, 24"`` for a list of layers."""
    pieces: list[list[int]] = []
    for layer in kept:
        if pieces and pieces[-1][1] == layer - 1:
            pieces[-1][1] = layer
        else:
            pieces.append([layer, layer])
    texts = [f"{first}-{last}" if last > first else str(first) for first, last in pieces]
    return ("layer " if len(kept) == 1 else "layers ") + ", ".join(texts)


def _named(name: str, number: int, total: int) -> tuple[int, ...]:
    if name == "first":
        return _first(number, total)
    _refuse_count(number, total)
    if name == "every":
        return tuple(range(0, total, number))
    start = total - number if name == "last" else (total - number) // 2
    return tuple(range(start, start + number))


def _first(count: int, total: int) -> tuple[int, ...]:
    _refuse_count(count, total)
    return tuple(range(count))


def _refuse_count(count: int, total: int) -> None:
    if not 1 <= count <= total:
        raise RecipeError(
            f"cannot keep {count} layers: the reference has {total}.",
            f"Choose between 1 and {total}.",
        )


def _listed(text: str, total: int) -> list[int]:
    kept: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise RecipeError(f"the range {part} runs backwards.", "Write the lower end first.")
        # A range beyond the reference is cut where it can still be refused: it may be huge.
        kept.extend(range(int(first), min(int(last or first), total) + 1))
        if int(first) >= total:
            kept.append(int(first))
    return kept
