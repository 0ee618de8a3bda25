"""How many tokens each variant needed to come down to a loss; never extrapolated.

How fast trainings ran: tokens and operations per second, share of the device's peak, memory.
"""

from collections.abc import Sequence

from inheritune.reporting.curves import Curve, reference_points
from inheritune.reporting.quantities import amount, data_size, exact, flops, loss, percent
from inheritune.reporting.record import Record, benchmark_of
from inheritune.reporting.series import TARGET, Line, val_lines
from inheritune.reporting.table import Column, Table

__all__ = ["reach_table", "speed_table"]

_MOST_LEVELS = 8
_MOST_VARIANTS = 8


def reach_table(record: Record, curves: Sequence[Curve]) -> Table:
    """Tokens until a validation was first at or below a loss.

    Args:
        record: ``run.json``.
        curves: The run's trainings.

    Returns:
        A row per loss: the benchmark, and what each variant came down to. A column per variant,
        all rounds of the target counted together; what was not reached says so. Of several
        seeds, the first.
    """
    once = [curve for curve in curves if not curve.repeats]
    lines = val_lines(record, once)[:_MOST_VARIANTS]
    own = reference_points(record)
    columns = [Column("loss of"), Column("val_loss", "nats", loss)]
    columns += [Column(line.name, "tokens", _reached, True) for line in lines]
    if own:
        columns.append(Column("the reference's own training", "tokens", _reached, True))
    values = []
    for label, level in _levels(record, lines):
        row = [label, level, *(_first(line, level) for line in lines)]
        if own:
            row.append(next((float(t) for t, value in own if value <= level), None))
        values.append(row)
    notes = [
        "Tokens at the first validation at or below the loss, those of earlier rounds counted. "
        "Between validations nothing is interpolated, so a figure may be too high by one interval; "
        "0: it began there. Not reached: not in this run, and nothing is extrapolated."
    ]
    if own:
        notes.append(
            "The reference's own training is as recorded then, perhaps on other validation text."
        )
    return Table("tokens-to-reach", columns, values, notes if values else [])


def _levels(record: Record, lines: Sequence[Line]) -> list[tuple[str, float]]:
    """Losses worth asking for, highest first; no two that are read alike."""
    known: dict[str, tuple[str, float]] = {}
    benchmark = benchmark_of(record)
    if benchmark is not None:
        known[loss(benchmark)] = ("the benchmark", benchmark)
    for line in lines:
        for number, part in enumerate(line.parts, 1):
            level = min(row["value"] or 0.0 for row in part)
            word = "round" if line.style is TARGET else "training"
            which = f", {word} {number}" if len(line.parts) > 1 else ""
            known.setdefault(loss(level), (f"{line.name}{which}", level))
    levels = sorted(known.values(), key=lambda item: -item[1])
    return levels[-_MOST_LEVELS:]


def _first(line: Line, level: float) -> float | None:
    below = (row["tokens"] for row in line.rows if (row["value"] or 0.0) <= level)
    return next(below, None)


def _reached(value: float | None) -> str:
    return "not reached" if value is None else amount(value)


def speed_table(curves: Sequence[Curve]) -> Table:
    """One row per training; model FLOPs utilization where the device's peak is known."""
    columns = [
        Column("training"),
        Column("median speed", "tokens/s", exact),
        Column("model FLOPs", "per s", flops),
        Column("MFU", show=percent),
        Column("peak memory", "bytes", data_size, True),
    ]
    values = []
    for curve in curves:
        speed, each = curve.health.median_speed, curve.flops_per_token
        rate = None if speed is None or each is None else speed * each
        health = curve.health
        values.append([curve.label, speed, rate, health.median_mfu, health.peak_memory])
    notes = ["Median over steps; model FLOPs are those of the ledger, nothing recomputed."]
    if any(curve.health.median_mfu is None for curve in curves):
        notes.append("MFU needs the peak of the device, which is not known everywhere.")
    return Table("speed-and-memory", columns, values, notes if values else [])
