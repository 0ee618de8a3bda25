"""Read the tables that the authors printed, and put the cost of a run beside the first of them.

Sanyal et al., arXiv 2404.08634, with its poster and README.
"""

import csv
from functools import cache
from importlib.resources import files

from inheritune.reporting.quantities import amount, flops, formatted
from inheritune.reporting.table import Column, Table
from inheritune.run_record.record import RunRecord

# Versions 1 and 4 of arXiv 2404.08634, and the poster.
_NOTES = (
    "Published rows as the authors' poster prints them; an empty cell was not printed.",
    "MPT-1.3B and Ours-1.5B are printed with half a day.",
    "Pythia-1.4B: 4.6 days on 64 GPUs here, 4830 GPU-hours (3.1 days) in the text of version 1.",
    'Ours-1.5B has 1.82B parameters; "1B tokens, one A6000, half a day" is impossible as stated: '
    "one pass needs 1.6 times that card's peak, the eight passes of the text 20 times.",
    "This run: every training that was paid for here, controls and rounds thrown away included; of "
    "the published rows, only the last training.",
)
_DAY_S = 86_400


@cache
def published(name: str) -> tuple[dict[str, str], ...]:
    """Read the rows of a table in ``reporting/published/``, such as ``table2_tasks``."""
    text = (files("inheritune.reporting") / "published" / f"{name}.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def number_of(row: dict[str, str], key: str) -> float | None:
    """Read a cell as a number; None where nothing was printed."""
    try:
        return float(row.get(key) or "")
    except ValueError:
        return None


def compute_table(record: RunRecord) -> Table:
    """List training tokens, devices and days of published models and of this whole run."""
    columns = [
        Column("model"),
        Column("training tokens"),
        Column("devices"),
        Column("kind of device"),
        Column("time", "days", formatted(".2g")),
        Column("FLOPs", show=flops),
    ]
    printed = ("model", "train_tokens", "gpu_count", "gpu_type")
    values: list[list[object]] = [
        [*(row[column] for column in printed), number_of(row, "time_days"), None]
        for row in published("table1_compute")
    ]
    paid = record.paid_entries
    seconds = [entry.seconds for entry in paid if entry.seconds is not None]
    spent_flops = [entry.flops for entry in paid if entry.flops is not None]
    values.append(
        [
            "this run, all of it",
            amount(sum(entry.tokens or 0 for entry in paid)),
            str(record.machine.get("devices") or 1),
            _device(record),
            sum(seconds) / _DAY_S if seconds else None,
            sum(spent_flops) if spent_flops else None,
        ]
    )
    title = "Compute, beside published trainings"
    return Table("table1_compute", columns, values, _NOTES, title)


def _device(record: RunRecord) -> str | None:
    machine = record.machine
    accelerator = machine.get("device") if machine.get("device") != "cpu" else None
    name = machine.get("gpu") or accelerator or machine.get("processor")
    return str(name) if name else None
