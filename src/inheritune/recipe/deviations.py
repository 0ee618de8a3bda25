"""List how a recipe differs from the published experiment that it reproduces."""

from typing import Any

from inheritune.recipe.published import Setting, published
from inheritune.recipe.schema import Recipe


def deviations(recipe: Recipe) -> list[str]:
    """List every setting that is not as published, and every practice that always differs.

    Empty if the recipe names no experiment under ``reproduces``. Where the authors' sources
    disagree, those that the recipe does not follow are listed too.
    """
    if recipe.reproduces is None:
        return []
    experiment, start = published(recipe.reproduces), f"Differs from {recipe.reproduces}: "
    values = recipe.resolved()
    sentences = []
    for key in dict.fromkeys(setting.key for setting in experiment.settings):
        value = _value(values, key)
        others = [s for s in experiment.settings if s.key == key and s.value != value]
        if others:
            sentences.append(f"{start}{key} is {_text(value)}; {'; '.join(map(_shown, others))}.")
    return sentences + [f"{start}{practice}." for practice in experiment.practices]


def _shown(setting: Setting) -> str:
    verb = "" if setting.source.endswith("prints") else ":"
    return f"{setting.source}{verb} {_text(setting.value)}"


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _text(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
