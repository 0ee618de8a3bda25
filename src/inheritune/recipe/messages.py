"""What is wrong with a recipe, in sentences: where, which key, which value, what is allowed."""

import difflib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

from pydantic import ValidationError

from inheritune.errors import RecipeError, escape
from inheritune.recipe.schema import Recipe
from inheritune.recipe.yaml_tree import KeyPath, Place, Tree, dotted, kind_of

__all__ = ["allowed", "explain"]

_MOST_LINES = 3
_Schema = Mapping[str, Any]
_Fault = Mapping[str, Any]  # as pydantic lists it
_Problem = tuple[str, str]  # what, and the way out


def explain(error: ValidationError, tree: Tree) -> RecipeError:
    """One error of one to three lines for everything that the models refused.

    Args:
        error: What pydantic raised for ``tree.value``.
        tree: The values with their places.
    """
    faults = _by_path(error, tree.value)
    problems: list[_Problem] = []
    explained: set[KeyPath] = set()  # missing, but an unknown key beside it was meant
    for path in sorted(faults, key=partial(_order, faults=faults, tree=tree)):
        if path not in explained:
            asked = len(problems) < _MOST_LINES  # thousands of unknown keys take no time
            what, hint = _sentence(path, faults[path], tree, explained) if asked else ("", "")
            problems.append((what, "" if hint in {hint for _, hint in problems} else hint))
    if len(problems) == 1:
        return RecipeError(*problems[0])
    lines = [" ".join(problem).strip() for problem in problems[:_MOST_LINES]]
    if len(problems) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"... and {len(problems) - 2} more problems."]
    return RecipeError("\n".join(lines))


def _order(path: KeyPath, faults: Mapping[KeyPath, _Fault], tree: Tree) -> tuple[bool, int, str]:
    # Missing keys last: an unknown key may turn out to be the missing one, misspelt.
    line = _place(path, tree).line or 10**9
    return faults[path]["type"] == "missing", line, dotted(path)


def _by_path(error: ValidationError, value: Any) -> dict[KeyPath, _Fault]:
    faults: dict[KeyPath, _Fault] = {}
    for fault in error.errors(include_url=False):
        path = _real_path(fault["loc"], value)
        if fault["type"] == "missing":
            path = (*path, fault["loc"][-1])
        faults.setdefault(path, dict(fault))
    # A list item that is wrong also makes the list wrong for the other types of its key.
    inner = {
        path[:end]
        for path in faults
        for place, part in enumerate(path)
        if isinstance(part, int)
        for end in (place, place + 1)
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
    for end in range(len(path), -1, -1):
        if path[:end] in tree.places:
            return tree.places[path[:end]]
    return Place("file", tree.label, 0)


def _sentence(path: KeyPath, fault: _Fault, tree: Tree, explained: set[KeyPath]) -> _Problem:
    place, name, kind, schema = _place(path, tree), dotted(path), fault["type"], _schema_at(path)
    start = f"{place.where}: {name}" if path else tree.label
    if kind == "missing":
        about = schema.get("description", "a section")
        return f"{start} is missing ({about}).", f"Give {allowed(schema)}."
    if kind == "extra_forbidden":
        return f"{start} is not a key.", _meant(path, explained)
    value = _value_at(path, tree.value)
    if kind == "value_error":
        is_section = isinstance(value, dict | list)
        reason = escape(fault["ctx"]["error"], 240)
        return f"{start}{'' if is_section else f' is {_shown(value, place)}'}: {reason}.", ""
    if fault["loc"][-1:] == ("[key]",):
        return f"{start} has an empty or too long name.", "Use 1 to 100 characters."
    shown = _shown(value, place)
    takes_text = any(_one(option).startswith("text") for option in _options(schema))
    if not isinstance(value, str | dict | list | None) and takes_text:
        return f"{start} is {shown}, read as {kind_of(value)}.", f'Quote it: "{shown}".'
    return f"{start} is {shown}.", f"Allowed: {allowed(schema)}.{_advice(value, place)}"


def _shown(value: Any, place: Place) -> str:
    if isinstance(value, dict | list):
        return kind_of(value)
    raw = escape(place.raw)
    return f'"{raw}"' if place.quoted else raw or "empty"


def _advice(value: Any, place: Place) -> str:
    if isinstance(value, float) and value.is_integer() and 0 < value < 1e18:
        return f" Write {int(value)}."
    if isinstance(value, str) and place.quoted and value.strip("+-").isdigit():
        return " Remove the quotes."
    return ""


def _meant(path: KeyPath, explained: set[KeyPath]) -> str:
    parent, key = path[:-1], str(path[-1])[:64].lower().replace("-", "_")
    siblings = list(_properties(parent))
    elsewhere = [known for known in _known_paths() if known[-1] == key]
    if key not in siblings and elsewhere:
        return f"It belongs elsewhere: {' or '.join(dotted(known) for known in elsewhere)}."
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.6):
        explained.add((*parent, close[0]))
        return f"Did you mean {dotted((*parent, close[0]))}?"
    names = {known[-1] for known in _known_paths()}
    if close := difflib.get_close_matches(key, sorted(map(str, names)), n=1, cutoff=0.75):
        known_as = [known for known in _known_paths() if known[-1] == close[0]]
        return f"Did you mean {' or '.join(dotted(known) for known in known_as)}?"
    return f"Allowed{f' in {dotted(parent)}' if parent else ''}: {', '.join(siblings)}."


def allowed(schema: _Schema) -> str:
    """What a key takes, in words.

    Args:
        schema: The part of the recipe's JSON Schema that describes the key.
    """
    texts = list(dict.fromkeys(_one(option) for option in _options(schema)))
    return " or ".join([", ".join(texts[:-1]), texts[-1]]) if texts[1:] else "".join(texts)


def _one(option: _Schema) -> str:
    if "const" in option:
        return str(option["const"])
    if "enum" in option:
        return " or ".join([", ".join(option["enum"][:-1]), option["enum"][-1]])
    kind = option.get("type")
    if kind in {"integer", "number"}:
        return _number("an integer" if kind == "integer" else "a finite number", option)
    if kind == "string":
        if "pattern" in option:
            is_multiple = str(option["pattern"]).endswith("x$")
            return "a multiple such as 2x" if is_multiple else "an amount such as 500K, 2M or 1.5B"
        return (
            f"text of at most {option['maxLength']} characters" if "maxLength" in option else "text"
        )
    if kind == "array":
        count = f"{option['minItems']} " if "minItems" in option else ""
        if "enum" in option["items"]:
            return f"a list of {_one(option['items'])}"
        items = "mappings" if "$ref" in option["items"] else "numbers"
        return f"a list of {count}{'texts' if option['items'].get('type') == 'string' else items}"
    if "properties" in option:
        return f"a mapping of {', '.join(option['properties'])}"
    words = {"boolean": "true or false", "null": "null", "object": "a mapping"}
    return words.get(str(kind), "text, a number, true, false, null, a list or a mapping")


def _number(noun: str, option: _Schema) -> str:
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    parts = [
        f"{sign} {'10^18' if option[key] == 10**18 else f'{option[key]:,}'}"
        for key, sign in limits.items()
        if key in option
    ]
    return f"{noun} {' and '.join(parts)}".rstrip()


# --- The schema, walked ---------------------------------------------------------------------


@cache
def _schema() -> _Schema:
    return Recipe.model_json_schema()


def _options(schema: _Schema) -> list[_Schema]:
    if "$ref" in schema:
        return _options(_schema()["$defs"][schema["$ref"].rsplit("/", 1)[-1]])
    if "anyOf" in schema:
        return [option for part in schema["anyOf"] for option in _options(part)]
    return [schema]


def _schema_at(path: KeyPath) -> _Schema:
    schema = _schema()
    for part in path:
        schema = _below(schema, part)
    return schema


def _below(schema: _Schema, part: str | int) -> _Schema:
    items = [option["items"] for option in _options(schema) if "items" in option]
    if isinstance(part, int) and items:
        return dict(items[0]) if len(items) == 1 else {"anyOf": items}
    for option in _options(schema):
        if part in option.get("properties", {}):
            return dict(option["properties"][part])
        if isinstance(option.get("additionalProperties"), dict):
            return dict(option["additionalProperties"])
    return {}


def _properties(path: KeyPath) -> Iterator[str]:
    for option in _options(_schema_at(path)):
        yield from option.get("properties", {})


@cache
def _known_paths() -> list[KeyPath]:
    def walk(schema: _Schema, path: KeyPath) -> Iterator[KeyPath]:
        for option in _options(schema):
            for key, part in option.get("properties", {}).items():
                yield (*path, key)
                yield from walk(part, (*path, key))
            named = option.get("additionalProperties")
            if isinstance(named, dict) and "$ref" in named:
                yield from walk(named, (*path, "<name>"))

    return list(walk(_schema(), ()))


def _value_at(path: KeyPath, value: Any) -> Any:
    for part in path:
        value = value[part]
    return value
