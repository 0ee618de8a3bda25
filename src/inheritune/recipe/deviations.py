"""In what a recipe differs from the published experiment that it reproduces."""

from collections.abc import Iterator
from typing import Any

from inheritune.recipe.published import Setting, published
from inheritune.recipe.schema import Recipe

__all__ = ["deviations"]


def deviations(recipe: Recipe) -> list[str]:
    """Every setting that is not as published, and every practice that never is.

    Args:
        recipe: Names the experiment under ``reproduces``; without it there is nothing to say.

    Returns:
        Sentences, settings first. Where the authors' sources disagree, those that the recipe does
        not follow are named too.
    """
    if recipe.reproduces is None:
        return []
    experiment, start = published(recipe.reproduces), f"Differs from {recipe.reproduces}: "
    given = recipe.resolved()
    keys = dict.fromkeys(setting.key for setting in experiment.settings)
    said = []
    for key in keys:
        own = _value(given, key)
        others = [s for s in experiment.settings if s.key == key and s.value != own]
        if others:
            known = "; ".join(_shown(others))
            said.append(f"{start}{key} is {_text(own)}; {known}.")
    return said + [f"{start}{practice}." for practice in experiment.practices]


def _shown(settings: list[Setting]) -> Iterator[str]:
    for setting in settings:
        verb = "" if setting.source.endswith("prints") else ":"
        yield f"{setting.source}{verb} {_text(setting.value)}"


def _value(given: Any, key: str) -> Any:
    for part in key.split("."):
        given = given.get(part) if isinstance(given, dict) else None
    return given


def _text(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
