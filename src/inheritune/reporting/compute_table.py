"""Table 1 of the paper: what it took to train models of this size, with this run's row.

Figures that the authors printed, as rows; and what is known to be wrong with them.

Facts from Sanyal et al., arXiv 2404.08634, versions
1 and 4, their poster and README; each row names its source.
"""

import csv
from functools import cache
from importlib.resources import files

from inheritune.reporting.quantities import MISSING, amount, flops
from inheritune.reporting.record import Record, number, rows, section, text
from inheritune.reporting.table import Column, Table

__all__ = ["COMPUTE_NOTES", "compute_table", "number_of", "published"]

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


_DAY_S = 86_400


def compute_table(record: Record) -> Table:
    """Training tokens, devices and days: published models, and everything this run spent.

    Args:
        record: ``run.json``; the row is the sum of the ledger but for what was borrowed.
    """
    columns = [
        Column("model"),
        Column("training tokens"),
        Column("devices"),
        Column("kind of device"),
        Column("time", "days", _days),
        Column("FLOPs", show=flops),
    ]
    values: list[list[object]] = [
        [
            row["model"],
            row["train_tokens"],
            row["gpu_count"],
            row["gpu_type"],
            number_of(row, "time_days"),
            None,
        ]
        for row in published("table1_compute")
    ]
    here = [row for row in rows(record, "ledger") if not row.get("borrowed")]
    tokens = [number(row, "tokens") for row in here]
    seconds = [value for row in here if (value := number(row, "seconds")) is not None]
    spent = [value for row in here if (value := number(row, "flops")) is not None]
    machine = section(record, "machine")
    gpu = text(machine, "gpu") or (
        text(machine, "device") if machine.get("device") != "cpu" else ""
    )
    values.append(
        [
            "this run, all of it",
            amount(sum(value for value in tokens if value is not None)),
            str(machine.get("devices") or 1),
            gpu or text(machine, "processor") or None,
            sum(seconds) / _DAY_S if seconds else None,
            sum(spent) if spent else None,
        ]
    )
    notes = [
        *COMPUTE_NOTES,
        "This run: every training that was paid for here, controls and rounds thrown away "
        "included; of the published rows, only the last training.",
    ]
    title = "Compute, beside published trainings"
    return Table("table1_compute", columns, values, notes, title)


def _days(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2g}"
