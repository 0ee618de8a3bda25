"""Explain errors of a recipe: file and line, key, value, and what is allowed instead."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from inheritune.errors import RecipeError, escape
from inheritune.recipe.aliases import key_for
from inheritune.recipe.schema import Recipe
from inheritune.recipe.yaml_tree import KeyPath, Location, Tree, dotted, kind_of

# Hints for keys of older versions.
REMOVED_KEYS = {
    "grow.abandon": "Leave it out, and limit growth by grow.max_rounds or grow.max_layers.",
    "grow.audit": "Leave it out: every round is trained to its end.",
    "grow.benchmark": "Leave it out: the reference loss is measured in every run.",
}

_MAX_LINES = 3
# Replacements for messages of pydantic that name classes and patterns.
_PLAIN = {"model_type": "be a mapping", "string_pattern_mismatch": "be a multiple such as 2x"}
_Fault = Mapping[str, Any]  # as pydantic lists it
_Problem = tuple[str, str]  # message, hint


def explain(error: ValidationError, tree: Tree) -> RecipeError:
    """Turn pydantic's errors about ``tree.value`` into one error of at most three lines."""
    faults = _by_path(error, tree.value)
    problems: list[_Problem] = []
    misspelt: set[KeyPath] = set()  # missing keys for which an unknown key was probably meant

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
    """Group pydantic's errors by key: there is one for each type that the key may have."""
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


def _place(path: KeyPath, tree: Tree) -> Location:
    """Return the location of a key, or else of the section it belongs to."""
    for end in range(len(path), -1, -1):
        if path[:end] in tree.places:
            return tree.places[path[:end]]
    return Location("file", tree.label, 0)


def _problem(path: KeyPath, faults: list[_Fault], tree: Tree, misspelt: set[KeyPath]) -> _Problem:
    fault, place = faults[0], _place(path, tree)
    start = f"{place.where}: {dotted(path)}" if path else tree.label
    if fault["type"] == "missing":
        return f"{start} is missing.", f"Add it: {_description(path)}"
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


def _shown(value: Any, place: Location) -> str:
    if isinstance(value, dict | list):
        return kind_of(value)
    if not place.raw and not place.quoted and value is not None:
        return escape(value)  # a value of a call, which nobody wrote
    raw = escape(place.raw)
    return f'"{raw}"' if place.quoted else raw or "empty"


def _requirement(faults: list[_Fault]) -> str:
    """Join pydantic's requirements, one for each type that the key may have, to a sentence."""
    texts = [
        _PLAIN.get(fault["type"]) or re.sub(r"^\w+ should ", "", fault["msg"]) for fault in faults
    ]
    *others, last = dict.fromkeys(texts)
    return f"It must {', '.join(others)}{' or ' if others else ''}{last}."


def _advice(value: Any, place: Location) -> str:
    if isinstance(value, float) and value.is_integer() and 0 < value < 1e18:
        return f" Write {int(value)}."
    if isinstance(value, str) and place.quoted and value.strip("+-").isdigit():
        return " Remove the quotes."
    return ""


# --- The keys of a recipe -------------------------------------------------------------------


def _suggestion(path: KeyPath, misspelt: set[KeyPath]) -> str:
    parent, name = path[:-1], str(path[-1])[:64].lower().replace("-", "_")
    siblings = [str(key[-1]) for key in _keys() if _fits(parent, key[:-1])]
    if (alias := key_for(name)) is not None:
        *section, last = alias[0].split(".")
        key: KeyPath = (*(parent if last in siblings else section), last)
        misspelt.add(key)
        return f"Did you mean {dotted(key)}{f' ({alias[1]})' if alias[1] else ''}?"
    elsewhere = [key for key in _keys() if key[-1] == name and 0 not in key]
    if name not in siblings and elsewhere:
        return f"It belongs elsewhere: {' or '.join(map(dotted, elsewhere))}."
    if close := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        misspelt.add((*parent, close[0]))
        return f"Did you mean {dotted((*parent, close[0]))}?"
    names = sorted({str(key[-1]) for key in _keys()})
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.75):
        return f"Did you mean {' or '.join(dotted(k) for k in _keys() if k[-1] == close[0])}?"
    return f"Allowed{f' in {dotted(parent)}' if parent else ''}: {', '.join(siblings)}."


def _description(path: KeyPath) -> str:
    """Return the description of a key, to follow a colon."""
    field = next(field for key, field in _keys().items() if _fits(path, key))
    text = " ".join((field.description or "a section with keys of its own").split())
    return text[0].lower() + text[1:]


@cache
def _keys() -> dict[KeyPath, FieldInfo]:
    """Map every key path of a recipe to its field; ``<name>`` is any name, and 0 any index."""

    def walk(section: type[BaseModel], path: KeyPath) -> Iterator[tuple[KeyPath, FieldInfo]]:
        for name, field in section.model_fields.items():
            yield (*path, name), field
            for inner, between in _sections(field.annotation):
                yield from walk(inner, (*path, name, *between))

    return dict(walk(Recipe, ()))


def _sections(annotation: Any, between: KeyPath = ()) -> Iterator[tuple[type[BaseModel], KeyPath]]:
    """Yield the recipe sections inside a type, each with the path parts that lead to it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, between
    step: dict[Any, KeyPath] = {dict: ("<name>",), list: (0,)}
    for part in get_args(annotation):
        yield from _sections(part, step.get(get_origin(annotation), between))


def _fits(path: KeyPath, key: KeyPath) -> bool:
    return len(path) == len(key) and all(
        key_part in (part, "<name>") or (isinstance(part, int) and isinstance(key_part, int))
        for part, key_part in zip(path, key, strict=True)
    )
