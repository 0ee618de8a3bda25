"""Choose layers of a reference: the one grammar of `inherit`, `plan` and the recipe key `select`.

A selection is a number (``13``: the first 13), a way and a number (``last:13``), a way alone where
the number stands elsewhere (``last`` beside ``layers: 13`` in a recipe), or a list of layers and
ranges (``0-11,24,25``).

The ways are in `surgery.ways`.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from inheritune.errors import RecipeError, escape
from inheritune.model_files.layers import ranges
from inheritune.surgery import removal
from inheritune.surgery.removal import Cut
from inheritune.surgery.ways import WAYS, LayerFacts

_N = "[0-9]{1,6}"
_LIST = re.compile(rf"{_N}(-{_N})?(,{_N}(-{_N})?)*")
_WAY = re.compile(rf"(?P<name>[a-z+-]*[a-z])(:(?P<number>{_N})(\+(?P<last>{_N}))?)?")

# Every form of a selection, for help texts.
FORMS = ", ".join(way.form for way in WAYS.values()) + ", or a list such as 0-11,24,25"

_WRITE = (
    "Write a number (13), a way with one (last:13, strided:13, block:13), or a list (0-11,24,25); "
    "`inheritune inherit --help` has all ways."
)


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
        estimate: Replace a way that needs a missing measurement by a fixed choice. Its number of
            layers is right, which is enough for checks and sizes before a run.

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


def give_back_layers(
    layers: int | str | Sequence[int] | None,
    facts: LayerFacts,
    first: int,
    count: int,
    *,
    estimate: bool = False,
) -> Cut:
    """Choose ``count`` layers that contain the ``first`` ones of a selection.

    Where larger choices of the way have all layers of its smaller ones, its own order is followed;
    else the layer whose return lowers the KL divergence most comes back first.

    Args:
        layers, facts, estimate: As for `choose_layers`.

    Raises:
        RecipeError: As for `choose_layers`; or scores are needed, and cannot be measured.
    """
    way = way_of(layers)
    if count > first and way is not None and WAYS[way].nested:
        return choose_layers(way, facts, count, estimate=estimate)
    cut = choose_layers(layers, facts, first, estimate=estimate)
    if count == first:
        return cut
    if facts.scores is None:
        if not estimate:
            raise _not_measured(f"giving back layers of {layers}", "scores")
        missing = [layer for layer in range(facts.layers) if layer not in cut]
        return tuple(sorted((*cut, *missing[: count - first])))
    with facts.scores.in_memory():
        return removal.give_back(facts.scores, facts.layers, cut, count)


def way_of(selection: int | str | Sequence[int] | None) -> str | None:
    """Return the name in `WAYS` that a selection uses; None for a list of layers."""
    if selection is None or isinstance(selection, int):
        return "first"
    text = selection.strip() if isinstance(selection, str) else ""
    if re.fullmatch(_N, text):
        return "first"
    match = _WAY.fullmatch(text)
    return match["name"] if match and match["name"] in WAYS else None


def named_candidates(names: Sequence[str], total: int, count: int) -> dict[str, Cut | None]:
    """Read what `auto` is to compare: ways by their names, and lists of ``count`` layers.

    Returns:
        By name, the layers of a list; None for a way, which chooses them.

    Raises:
        RecipeError: One is neither, or cannot be compared.
    """
    cuts: dict[str, Cut | None] = {}
    for name in names:
        way = WAYS.get(name)
        if way is None:
            if way_of(name) is not None:
                raise RecipeError(
                    f"the candidate {escape(name)!r} states a number of layers.",
                    f"Write {way_of(name)}; all candidates have {count} layers.",
                )
            cuts[name] = choose_layers(name, LayerFacts(total), count)
        elif name == "auto" or not way.counts or way.needs not in (None, "scores"):
            possible = [n for n, w in WAYS.items() if w.counts and w.needs in (None, "scores")]
            raise RecipeError(
                f"{name} cannot be a candidate.",
                f"Choose among {', '.join(n for n in possible if n != 'auto')}, or list layers.",
            )
        else:
            cuts[name] = None
    return cuts


def needed_measurement(selection: str | None, grows: bool = False) -> str | None:
    """Return the field of `LayerFacts` that a selection needs; None if it needs none.

    With ``grows``, also what giving back layers needs.
    """
    way = way_of(selection)
    if grows and (way is None or not WAYS[way].nested):
        return "scores"
    return WAYS[way].needs if way else None


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
        raise RecipeError(f"{escape(text)!r} does not say which layers to keep.", _WRITE)
    name = match["name"]
    if match["last"]:
        if name != "first+last":
            raise RecipeError(f"{escape(text)!r} has two numbers.", _WRITE)
        first, last = int(match["number"]), int(match["last"])
        _refuse_count(first + last, facts.layers)
        return (*range(first), *range(facts.layers - last, facts.layers))
    number = int(match["number"]) if match["number"] else count
    if number is None:
        half = max(way.least, facts.layers // 2)
        raise RecipeError(
            f"{name} does not say how many layers.", f"Give their number, such as {name}:{half}."
        )
    return _choose(name, number, facts, estimate)


def _choose(name: str, number: int, facts: LayerFacts, estimate: bool) -> tuple[int, ...]:
    _refuse_count(number, facts.layers)
    way = WAYS[name]
    if number < way.least:
        raise RecipeError(f"{name} needs two layers at least.", "Choose more layers.")
    if way.needs is not None and getattr(facts, way.needs) is None:
        if not estimate:
            raise _not_measured(name, way.needs)
        # Both ends stay in most choices by scores.
        way = WAYS["first+last" if way.needs == "scores" and number > 1 else "last"]
    return tuple(way.choose(facts, number))


def _not_measured(what: str, need: str) -> RecipeError:
    text = "Give calibration text (--text), use" if need == "scores" else "Use"
    return RecipeError(
        f"{what} needs a measurement of the reference's layers.",
        f"{text} it in a recipe, or choose the layers another way.",
    )


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


def other_engines(by_number: Sequence[str]) -> str:
    """Say that engines may count layers by number; empty where that makes no difference."""
    if not by_number:
        return ""
    return (
        f"{' and '.join(by_number)} of these layers cannot be told from their numbers: right in "
        "transformers, but engines that count by number (llama.cpp, Ollama) compute something else"
    )
