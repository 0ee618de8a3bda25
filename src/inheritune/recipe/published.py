"""List how a recipe differs from the published experiment that it reproduces.

published.csv has a column for each experiment, and a row for each setting and source. v1 is arXiv
2404.08634v1 (2024), v4 its version of 2026; code, runs and their logs are from the authors'
repository. Where these disagree, each source has its own row; the tokens of "v1's 64K steps" are
those of that many steps of the printed batch. The rows called "practice" are differences in method
that no recipe key can remove.
"""

import csv
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A setting of an experiment; a key has several where the authors' sources disagree."""

    key: str  # of the recipe, such as "train.tokens"
    value: Any
    source: str  # where it is published, such as "v1 prints"


def experiment_names() -> list[str]:
    """List the names of all experiments, sorted."""
    return sorted(_experiments())


def check_experiment(name: str) -> str:
    """Return the name of a published experiment, or raise ValueError with a suggestion."""
    names = experiment_names()
    if name in names:
        return name
    close = difflib.get_close_matches(name[:100].lower(), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
    raise ValueError(f"there is no published experiment of this name; {hint}")


@cache
def _experiments() -> dict[str, tuple[list[Setting], list[str]]]:
    """Read the settings and the practices of each experiment."""
    text = (files("inheritune.recipe") / "published.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    experiments = {}
    for name in list(rows[0])[2:]:
        cells = [(row["key"], row[name], row["source"]) for row in rows if row[name]]
        experiments[name] = (
            [
                Setting(key, _value(cell), source)
                for key, cell, source in cells
                if source != "practice"
            ],
            [key for key, _, source in cells if source == "practice"],
        )
    return experiments


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:  # a text
        return cell


def deviations(values: Mapping[str, Any]) -> list[str]:
    """List how a recipe, resolved to JSON values, differs from the experiment it reproduces.

    Empty if it names none under ``reproduces``. Where the authors' sources disagree, those that the
    recipe does not follow are listed too.
    """
    if (name := values["reproduces"]) is None:
        return []
    settings, practices = _experiments()[name]
    sentences = []
    for key in dict.fromkeys(setting.key for setting in settings):
        value = _look_up(values, key)
        others = [s for s in settings if s.key == key and s.value != value]
        if others:
            sentences.append(f"{key} is {_text(value)}; {'; '.join(map(_shown, others))}")
    return [f"Differs from {name}: {sentence}." for sentence in [*sentences, *practices]]


def _shown(setting: Setting) -> str:
    verb = "" if setting.source.endswith("prints") else ":"
    return f"{setting.source}{verb} {_text(setting.value)}"


def _look_up(values: Any, key: str) -> Any:
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
