"""Figures that the authors printed, as rows; and what is known to be wrong with them.

Facts from Sanyal et al., arXiv 2404.08634, versions
1 and 4, their poster and README; each row names its source.
"""

import csv
from functools import cache
from importlib.resources import files

__all__ = ["COMPUTE_NOTES", "number_of", "published"]

COMPUTE_NOTES = (
    "Published rows as the authors' poster prints them; an empty cell was not printed.",
    "MPT-1.3B and Ours-1.5B are printed with half a day.",
    "Pythia-1.4B: 4.6 days on 64 GPUs here, 4830 GPU-hours (3.1 days) in the text of version 1.",
    'Ours-1.5B has 1.82B parameters; "1B tokens, one A6000, half a day" is impossible as stated: '
    "one pass needs 1.6 times that card's peak, the eight passes of the text 20 times.",
)


@cache
def published(name: str) -> tuple[dict[str, str], ...]:
    """Rows of one table.

    Args:
        name: Of a file in ``report/published/``, such as ``table2_tasks``.
    """
    text = (files("inheritune.reporting") / "published" / f"{name}.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def number_of(row: dict[str, str], key: str) -> float | None:
    """A cell as a number; None where nothing was printed."""
    try:
        return float(row.get(key) or "")
    except ValueError:
        return None
