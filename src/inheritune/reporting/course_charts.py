"""How trainings went, step by step: training loss and speed, raw and smoothed."""

from collections.abc import Sequence

from inheritune.reporting.curves import Curve, thin
from inheritune.reporting.line_charts import Chart, Measure, line_chart
from inheritune.reporting.quantities import exact, loss
from inheritune.reporting.record import Record
from inheritune.reporting.series import (
    Line,
    Row,
    continued,
    growth,
    speed_lines,
    train_lines,
    window,
)
from inheritune.reporting.table import Column, Table

__all__ = ["speed_chart", "training_chart"]

_POINTS = 900  # of all lines of a chart, raw and smoothed together
_TABLE_ROWS = 150


def training_chart(record: Record, curves: Sequence[Curve]) -> Chart | None:
    """Training loss of every step, and smoothed; None where no step is recorded."""
    lines = train_lines(record, curves, _POINTS)
    if not lines:
        return None
    bottom, top = _settled(lines)
    measure = Measure("loss", "training loss (nats per token)", ".4f", (bottom, top))
    table, left_out = _values(lines, Column("training loss", "nats", loss), "training-loss")
    return Chart(
        "training-loss",
        "Training loss",
        f"{_smoothing(curves)} Measured on the text of each step itself, before the step; a "
        "variant that distils has another loss, so compare val_loss.",
        _alt("training loss", [f"{line.name} {loss(line.last['value'])}" for line in lines]),
        line_chart(lines, measure, (), growth(curves), continued(curves)),
        table,
        left_out,
    )


def speed_chart(record: Record, curves: Sequence[Curve]) -> Chart | None:
    """Tokens per second of every step, and smoothed; None where no speed is recorded."""
    lines = speed_lines(record, curves, _POINTS)
    if not lines:
        return None
    most = max(row["value"] or 0.0 for line in lines for row in line.rows)
    labels = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"
    measure = Measure("tokens_per_s", "tokens per second", ",.0f", (0.0, 1.1 * most or 1), labels)
    table, left_out = _values(lines, Column("speed", "tokens/s", exact), "speed")
    return Chart(
        "speed",
        "Speed of training",
        f"{_smoothing(curves)} Validations and saves between the steps are not in it.",
        _alt("tokens per second", [f"{line.name} {exact(line.last['value'])}" for line in lines]),
        line_chart(lines, measure, (), growth(curves), continued(curves)),
        table,
        left_out,
    )


def _smoothing(curves: Sequence[Curve]) -> str:
    over = sorted({window(len(curve.course.steps)) for curve in curves if curve.course.steps})
    steps = f"{over[0]}" if len(over) == 1 else f"{over[0]} to {over[-1]}"
    return f"Lines: mean of the last {steps} steps. Faint: single steps."


def _settled(lines: Sequence[Line]) -> tuple[float, float]:
    """Bottom and top: of what is drawn after the first tenth, raw values up to a point."""
    late = [
        row["value"] or 0.0
        for line in lines
        for part in line.parts
        for row in part[len(part) // 10 :]
    ]
    bottom, top = min(late), max(late)
    margin = max(0.15 * (top - bottom), 0.02)
    return bottom - margin, top + margin


def _values(lines: Sequence[Line], column: Column, name: str) -> tuple[Table, str]:
    limit = max(6, _TABLE_ROWS // sum(len(line.parts) for line in lines))
    total, values = 0, []
    for line in lines:
        for part in line.parts:
            total += len(part)
            values += [[line.name, row["tokens"], row["value"]] for row in _some(part, limit)]
    columns = [Column("variant"), Column("tokens with earlier rounds", show=exact), column]
    left = "" if len(values) == total else "Some of the smoothed values."
    return Table(name, columns, values), left


def _some(part: Sequence[Row], limit: int) -> list[Row]:
    places = [(index, row["value"] or 0.0) for index, row in enumerate(part)]
    return [part[index] for index, _ in thin(places, limit)]


def _alt(what: str, ends: Sequence[str]) -> str:
    return (
        f"Line chart of {what}, smoothed, with single steps behind it. At the end: "
        f"{'; '.join(ends[:12])}. The figures are in the table below the chart."
    )
