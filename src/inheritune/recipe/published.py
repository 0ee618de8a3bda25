"""Look up the settings of the published experiments, as the authors printed, logged and coded them.

published.csv has a column for each experiment, and a row for each setting and source. v1 is arXiv
2404.08634v1 (2024), v4 its version of 2026; code, runs and their logs are from the authors'
repository. Where these disagree, each source has its own row; the tokens of "v1's 64K steps" are
those of that many steps of the printed batch. The rows called "practice" are differences in method
that no recipe key can remove.
"""

import csv
import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One setting of an experiment."""

    key: str  # of the recipe, such as "train.tokens"
    value: Any
    source: str  # where it is published, such as "v1 prints"


@dataclass(frozen=True)
class Published:
    """A published experiment."""

    settings: tuple[Setting, ...]  # a key appears more than once if sources disagree
    practices: tuple[str, ...]


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


def published(name: str) -> Published:
    """Return an experiment by a name that `check_experiment` has accepted."""
    return _experiments()[name]


@cache
def _experiments() -> dict[str, Published]:
    text = (files("inheritune.recipe") / "published.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    experiments = {}
    for name in list(rows[0])[2:]:
        given = [row for row in rows if row[name]]
        settings = [row for row in given if row["source"] != "practice"]
        experiments[name] = Published(
            tuple(Setting(row["key"], _value(row[name]), row["source"]) for row in settings),
            tuple(row["key"] for row in given if row["source"] == "practice"),
        )
    return experiments


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:  # a text
        return cell
