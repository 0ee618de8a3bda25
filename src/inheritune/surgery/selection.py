"""Choose layers of a reference: the one grammar of `inherit`, `plan` and the recipe key `select`.

A selection is a number (``13``: the first 13), a way and a number (``last:13``), a way alone where
the number stands elsewhere (``last`` beside ``layers: 13`` in a recipe), or a list of layers and
ranges (``0-11,24,25``).

To add a way of choosing layers:

1. Write a function ``(facts, count) -> layer indices`` and enter it in `WAYS` with its form for
   help texts.
2. If it uses something measured on the reference, such as scores from calibration text, add a
   field for that to `LayerFacts`, name the field in the way's ``needs``, measure it where
   ``layers_by_rank`` is measured (`steps.analysis.with_attention_ranks`), and pass it on beside it
   (`steps.reference.Reference`, `steps.training_spec`).
3. Put `FORMS` into the description of ``select`` in recipe/variants.py and rewrite
   recipes/recipe.schema.json; tests compare them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from inheritune.errors import RecipeError, escape
from inheritune.model_files.layers import ranges

_N = "[0-9]{1,6}"
_LIST = re.compile(rf"{_N}(-{_N})?(,{_N}(-{_N})?)*")
_WAY = re.compile(rf"(?P<name>[a-z+]*[a-z])(:(?P<number>{_N})(\+(?P<last>{_N}))?)?")


@dataclass(frozen=True)
class LayerFacts:
    """Facts about a reference that ways of choosing layers may use."""

    layers: int  # number of its layers, N
    layers_by_rank: Sequence[int] | None = None  # lowest attention rank first; None: not measured


@dataclass(frozen=True)
class Way:
    """A named way of choosing layers."""

    choose: Callable[[LayerFacts, int], Sequence[int]]  # for a number from 1 to N
    form: str  # an example for help texts
    needs: str | None = None  # field of `LayerFacts` that must have been measured
    counts: bool = True  # whether the number is the number of layers


# --- the ways, each (facts, count) -> layer indices ---


def _middle(facts: LayerFacts, count: int) -> Sequence[int]:
    start = (facts.layers - count) // 2
    return range(start, start + count)


def _first_and_last(facts: LayerFacts, count: int) -> Sequence[int]:
    if count < 2:
        raise RecipeError("first+last needs two layers at least.", "Choose more layers.")
    return (*range(count - 1), facts.layers - 1)


def _strided(facts: LayerFacts, count: int) -> Sequence[int]:
    # Layer i of n is round(i (N - 1) / (n - 1)), half up, in integers: floats round halves to even,
    # and so not always to the same side.
    steps = max(count - 1, 1)
    return [(2 * i * (facts.layers - 1) + steps) // (2 * steps) for i in range(count)]


def _lazy(facts: LayerFacts, count: int) -> Sequence[int]:
    by_rank = facts.layers_by_rank or ()
    if count > len(by_rank):
        raise RecipeError(
            f"lazy asks for {count} layers, but {len(by_rank)} have attention.",
            "Choose fewer layers, or another select.",
        )
    return sorted(by_rank[:count])


# Named choices from Sanyal et al., Inheritune, arXiv 2404.08634, and its controls.
WAYS = {
    "first": Way(lambda facts, n: range(n), "13 or first:13 (the first 13)"),
    "last": Way(lambda facts, n: range(facts.layers)[-n:], "last:13"),
    "middle": Way(_middle, "middle:13"),
    "first+last": Way(_first_and_last, "first+last:10+3 (first 10, last 3; first+last:13 is 12+1)"),
    "strided": Way(_strided, "strided:13 (evenly spread)"),
    "every": Way(
        lambda facts, step: range(facts.layers)[::step], "every:2 (0, 2, 4, ...)", counts=False
    ),
    "lazy": Way(_lazy, "lazy:13 (lowest attention rank; in recipes only)", needs="layers_by_rank"),
}
FORMS = ", ".join(way.form for way in WAYS.values()) + ", or a list such as 0-11,24,25"


# --- the grammar ---


def choose_layers(
    layers: int | str | Sequence[int] | None,
    facts: LayerFacts,
    count: int | None = None,
    *,
    estimate: bool = False,
) -> tuple[int, ...]:
    """Choose the layers of a selection.

    Args:
        layers: A number of first layers; a text in the grammar of this module; or layer indices,
            which are checked. None: ``"first"``.
        facts: The reference's number of layers, and the measurements made so far.
        count: Number of layers, if stated elsewhere; a selection with another number is refused.
        estimate: Replace a way that needs a missing measurement by the last layers. Their number is
            right, which is enough for checks and sizes before a run.

    Returns:
        Layer indices from 0, ascending, at least one.

    Raises:
        RecipeError: The text is not in the grammar, the reference has no such layers, the number
            is missing or contradicted, or the way needs a measurement that was not made.
    """
    if isinstance(layers, str) or layers is None:
        chosen = _read("first" if layers is None else layers.strip(), facts, count, estimate)
    elif isinstance(layers, int):
        chosen = _choose("first", layers, facts, estimate)
    else:
        chosen = check_selection(layers, facts.layers)
    if count is not None and len(chosen) != count:
        raise RecipeError(
            f"{escape(repr(layers))} keeps {len(chosen)} layers, not {count}.",
            "Leave the number out.",
        )
    return chosen


def needed_measurement(selection: str | None) -> str | None:
    """Return the field of `LayerFacts` that a selection needs; None if it needs none."""
    match = _WAY.fullmatch((selection or "").strip())
    way = WAYS.get(match["name"]) if match else None
    return way.needs if way else None


def stated_count(selection: str | None, total: int) -> int | None:
    """Count the layers of a selection that states their number, such as ``"last:13"``; else None.

    Like `choose_layers`, refuse one that chooses layers beyond ``total``.
    """
    if selection is None or not re.search("[0-9]", selection):
        return None
    return len(choose_layers(selection, LayerFacts(total), estimate=True))


def check_selection(layers: Sequence[int], total: int) -> tuple[int, ...]:
    """Return layer indices that ascend strictly from 0 to ``total`` - 1; refuse others."""
    if not layers:
        raise RecipeError("no layer is chosen.", f"Choose among 0 to {total - 1}.")
    for layer in layers:
        if not 0 <= layer < total:
            raise RecipeError(
                f"there is no layer {layer}: the reference has {total}, counted from 0.",
                f"Choose among 0 to {total - 1}.",
            )
    for before, after in pairwise(layers):
        if after <= before:
            problem = "stands twice" if after == before else f"comes after layer {before}"
            raise RecipeError(f"layer {after} {problem}.", "List each layer once, in its order.")
    return tuple(layers)


def describe_selection(layers: Sequence[int]) -> str:
    """Write layer indices as ``"layers 0-11, 24"``."""
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(ranges(layers))


def _read(text: str, facts: LayerFacts, count: int | None, estimate: bool) -> tuple[int, ...]:
    if re.fullmatch(_N, text):
        return _choose("first", int(text), facts, estimate)
    if _LIST.fullmatch(text):
        return check_selection(_listed(text, facts.layers), facts.layers)
    match = _WAY.fullmatch(text)
    way = WAYS.get(match["name"]) if match else None
    if match is None or way is None or not (match["number"] or way.counts):
        raise RecipeError(f"{escape(text)!r} does not say which layers to keep.", f"Write {FORMS}.")
    name = match["name"]
    if match["last"]:
        if name != "first+last":
            raise RecipeError(f"{escape(text)!r} has two numbers.", f"Write {FORMS}.")
        first, last = int(match["number"]), int(match["last"])
        _refuse_count(first + last, facts.layers)
        return (*range(first), *range(facts.layers - last, facts.layers))
    number = int(match["number"]) if match["number"] else count
    if number is None:
        raise RecipeError(
            f"{name} does not say how many layers.", f"Give their number, such as {name}:13."
        )
    return _choose(name, number, facts, estimate)


def _choose(name: str, number: int, facts: LayerFacts, estimate: bool) -> tuple[int, ...]:
    _refuse_count(number, facts.layers)
    way = WAYS[name]
    if way.needs is not None and getattr(facts, way.needs) is None:
        if not estimate:
            raise RecipeError(
                f"{name} needs a measurement of the reference's layers, which only a run makes.",
                "Use it as `select` of a variant in a recipe, or choose the layers another way.",
            )
        way = WAYS["last"]
    return tuple(way.choose(facts, number))


def _refuse_count(count: int, total: int) -> None:
    if not 1 <= count <= total:
        raise RecipeError(
            f"cannot keep {count} layers: the reference has {total}.",
            f"Choose between 1 and {total}.",
        )


def _listed(text: str, total: int) -> list[int]:
    layers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise RecipeError(f"the range {part} runs backwards.", "Write the lower end first.")
        # A huge range is cut short, just beyond the reference, where it is still refused.
        layers.extend(range(int(first), min(int(last or first), total) + 1))
        if int(first) >= total:
            layers.append(int(first))
    return layers
