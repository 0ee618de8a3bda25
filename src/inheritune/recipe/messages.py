"""Explain what is wrong with a recipe: file and line, key, value, and what is allowed instead."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from inheritune.errors import RecipeError, escape
from inheritune.recipe.schema import Recipe
from inheritune.recipe.yaml_tree import KeyPath, Place, Tree, dotted, kind_of

__all__ = ["REMOVED_KEYS", "explain"]

# Keys of older versions, and what to do instead. An unknown key that is listed here gets this hint.
REMOVED_KEYS = {
    "grow.abandon": "Leave it out, and limit growth by grow.max_rounds or grow.max_layers.",
    "grow.audit": "Leave it out: every round is trained to its end.",
    "grow.benchmark": "Leave it out: the reference loss is measured in every run.",
}

_MAX_LINES = 3
# In place of pydantic's words, which name classes and patterns.
_PLAIN = {"model_type": "be a mapping", "string_pattern_mismatch": "be a multiple such as 2x"}
_Fault = Mapping[str, Any]  # as pydantic lists it
_Problem = tuple[str, str]  # message, hint


def explain(error: ValidationError, tree: Tree) -> RecipeError:
    """Turn pydantic's errors into one error of at most three lines.

    Args:
        error: Raised by pydantic for ``tree.value``.
        tree: The values with their places.
    """
    faults = _by_path(error, tree.value)
    problems: list[_Problem] = []
    misspelt: set[KeyPath] = set()  # missing, but an unknown key beside it was meant

    # Missing keys come last, since an unknown key may turn out to be the missing one, misspelt.
    def order(path: KeyPath) -> tuple[bool, int, str]:
        line = _place(path, tree).line or 10**9
        return faults[path][0]["type"] == "missing", line, dotted(path)

    for path in sorted(faults, key=order):
        if path in misspelt:
            continue
        if len(problems) >= _MAX_LINES:  # only counted: thousands of unknown keys take no time
            problems.append(("", ""))
            continue
        message, hint = _problem(path, faults[path], tree, misspelt)
        problems.append((message, "" if hint in {hint for _, hint in problems} else hint))
    if len(problems) == 1:
        return RecipeError(*problems[0])
    lines = [" ".join(problem).strip() for problem in problems[:_MAX_LINES]]
    if len(problems) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], f"... and {len(problems) - 2} more problems."]
    return RecipeError("\n".join(lines))


def _by_path(error: ValidationError, value: Any) -> dict[KeyPath, list[_Fault]]:
    """Group pydantic's errors by key: one for each type that a key could have had."""
    faults: dict[KeyPath, list[_Fault]] = defaultdict(list)
    for fault in error.errors(include_url=False):
        path = _real_path(fault["loc"], value)
        if fault["type"] == "missing":
            path = (*path, fault["loc"][-1])
        faults[path].append(dict(fault))
    # A wrong item of a list is also an error of the list, which might have been another type.
    inner = {
        path[:end]
        for path in faults
        for position, part in enumerate(path)
        if isinstance(part, int)
        for end in (position, position + 1)
        if end < len(path)
    }
    return {path: fault for path, fault in faults.items() if path not in inner}


def _real_path(loc: KeyPath, value: Any) -> KeyPath:
    # pydantic puts the names of union members and "[key]" between the keys.
    path: KeyPath = ()
    for part in loc:
        in_mapping = isinstance(value, dict) and part in value
        if in_mapping or (isinstance(value, list) and isinstance(part, int)):
            path, value = (*path, part), value[part]
    return path


def _place(path: KeyPath, tree: Tree) -> Place:
    """Find where a key was written, or else the section it belongs to."""
    for end in range(len(path), -1, -1):
        if path[:end] in tree.places:
            return tree.places[path[:end]]
    return Place("file", tree.label, 0)


def _problem(path: KeyPath, faults: list[_Fault], tree: Tree, misspelt: set[KeyPath]) -> _Problem:
    fault, place = faults[0], _place(path, tree)
    start = f"{place.where}: {dotted(path)}" if path else tree.label
    if fault["type"] == "missing":
        about = _field(path)
        description = " ".join(((about and about.description) or "a section").split())
        return f"{start} is missing.", f"Add it: {description[0].lower()}{description[1:]}"
    if fault["type"] == "extra_forbidden":
        if dotted(path) in REMOVED_KEYS:
            return f"{start} is no longer a key.", REMOVED_KEYS[dotted(path)]
        return f"{start} is not a key.", _suggestion(path, misspelt)
    value = tree.value
    for part in path:
        value = value[part]
    if fault["type"] == "value_error":
        is_section = isinstance(value, dict | list)
        reason = escape(fault["ctx"]["error"], 240)
        return f"{start}{'' if is_section else f' is {_shown(value, place)}'}: {reason}.", ""
    if fault["loc"][-1:] == ("[key]",):
        return f"{start} has an empty or too long name.", "Use 1 to 100 characters."
    shown = _shown(value, place)
    is_scalar = not isinstance(value, str | dict | list | None)
    if is_scalar and any(fault["type"] == "string_type" for fault in faults):
        return f"{start} is {shown}, read as {kind_of(value)}.", f'Quote it: "{shown}".'
    return f"{start} is {shown}.", _requirement(faults) + _advice(value, place)


def _shown(value: Any, place: Place) -> str:
    if isinstance(value, dict | list):
        return kind_of(value)
    raw = escape(place.raw)
    return f'"{raw}"' if place.quoted else raw or "empty"


def _requirement(faults: list[_Fault]) -> str:
    """Put what pydantic says of each type that the key may have into one sentence."""
    texts = [
        _PLAIN.get(fault["type"]) or re.sub(r"^\w+ should ", "", fault["msg"]) for fault in faults
    ]
    *others, last = dict.fromkeys(texts)
    return f"It must {', '.join(others)}{' or ' if others else ''}{last}."


def _advice(value: Any, place: Place) -> str:
    if isinstance(value, float) and value.is_integer() and 0 < value < 1e18:
        return f" Write {int(value)}."
    if isinstance(value, str) and place.quoted and value.strip("+-").isdigit():
        return " Remove the quotes."
    return ""


# --- Which keys there are -------------------------------------------------------------------


def _suggestion(path: KeyPath, misspelt: set[KeyPath]) -> str:
    parent, key = path[:-1], str(path[-1])[:64].lower().replace("-", "_")
    keys = _keys()
    siblings = [str(known[-1]) for known in keys if _fits(known[:-1], parent)]
    elsewhere = [known for known in keys if known[-1] == key and 0 not in known]
    if key not in siblings and elsewhere:
        return f"It belongs elsewhere: {' or '.join(map(dotted, elsewhere))}."
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.6):
        misspelt.add((*parent, close[0]))
        return f"Did you mean {dotted((*parent, close[0]))}?"
    names = sorted({str(known[-1]) for known in keys})
    if close := difflib.get_close_matches(key, names, n=1, cutoff=0.75):
        meant = [dotted(known) for known in keys if known[-1] == close[0]]
        return f"Did you mean {' or '.join(meant)}?"
    return f"Allowed{f' in {dotted(parent)}' if parent else ''}: {', '.join(siblings)}."


@cache
def _keys() -> dict[KeyPath, FieldInfo]:
    """Every key of a recipe by its path, with ``<name>`` for a name of the user's."""

    def walk(section: type[BaseModel], path: KeyPath) -> Iterator[tuple[KeyPath, FieldInfo]]:
        for name, about in section.model_fields.items():
            yield (*path, name), about
            for inner, middle in _sections(about.annotation):
                yield from walk(inner, (*path, name, *middle))

    return dict(walk(Recipe, ()))


def _sections(annotation: Any, middle: KeyPath = ()) -> Iterator[tuple[type[BaseModel], KeyPath]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, middle
    for part in get_args(annotation):
        in_mapping = getattr(annotation, "__origin__", None) is dict
        in_list = getattr(annotation, "__origin__", None) is list
        yield from _sections(part, ("<name>",) if in_mapping else (0,) if in_list else middle)


def _fits(known: KeyPath, path: KeyPath) -> bool:
    """Tell whether a path is that of a known key; any index and any name of the user's will do."""
    return len(known) == len(path) and all(
        a in (b, "<name>") or (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(known, path, strict=True)
    )


def _field(path: KeyPath) -> FieldInfo | None:
    return next((about for known, about in _keys().items() if _fits(known, path)), None)
