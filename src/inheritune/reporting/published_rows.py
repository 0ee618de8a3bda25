"""Read the figures that the authors printed: Sanyal et al., arXiv 2404.08634, poster and README."""

import csv
from functools import cache
from importlib.resources import files

__all__ = ["number_of", "published"]


@cache
def published(name: str) -> tuple[dict[str, str], ...]:
    """Read the rows of a table in ``reporting/published/``, such as ``table2_tasks``."""
    text = (files("inheritune.reporting") / "published" / f"{name}.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def number_of(row: dict[str, str], key: str) -> float | None:
    """A cell as a number; None where nothing was printed."""
    try:
        return float(row.get(key) or "")
    except ValueError:
        return None
