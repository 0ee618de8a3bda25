"""Write a recipe as YAML text, with a comment beside a value."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inheritune.recipe.presets import schema_uri
from inheritune.recipe.schema import Recipe
from inheritune.recipe.sections import yaml_value
from inheritune.recipe.values import AMOUNTS

_COMMENT_COLUMN = 40


def written_recipe(
    values: Mapping[str, Any], comments: Mapping[str, str], heading: Sequence[str]
) -> str:
    """Write a recipe, its sections in the order of the documentation.

    Args:
        values: The recipe as plain values, without what has its default.
        comments: By dotted key such as ``"train.tokens"``.
        heading: Lines of comment at the top, below the one that names the schema.
    """
    lines = [f"# yaml-language-server: $schema={schema_uri()}"]
    lines += [f"# {line}" for line in heading]
    order = [*Recipe.model_fields]
    for name in sorted(values, key=lambda key: order.index(key) if key in order else len(order)):
        lines += _lines(name, values[name], comments)
    return "\n".join(lines) + "\n"


def _lines(name: str, value: Any, comments: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield _commented(f"{name}: {yaml_value(value)}", comments.get(name))
        return
    yield _commented(f"{name}:", comments.get(name))
    for key, inner in value.items():
        is_amount = "tokens" in key or key == "eval_every"
        text = _amount(inner) if is_amount and type(inner) is int else yaml_value(inner)
        yield _commented(f"  {key}: {text}", comments.get(f"{name}.{key}"))


def _amount(value: int) -> str:
    for letter, unit in reversed(AMOUNTS.items()):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{letter}"
    return str(value)


def _commented(line: str, comment: str | None) -> str:
    return line if comment is None else f"{line:<{_COMMENT_COLUMN - 1}} # {comment}"
