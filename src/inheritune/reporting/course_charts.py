"""Draw training loss and speed step by step, raw and smoothed."""

from collections.abc import Sequence

from inheritune.reporting.curves import Curve, thin
from inheritune.reporting.line_charts import Measure, line_chart
from inheritune.reporting.quantities import amount, exact, loss
from inheritune.reporting.section import Chart
from inheritune.reporting.series import (
    AMOUNT_LABELS,
    Line,
    events_of,
    smoothing_window,
    speed_lines,
    train_lines,
    value_of,
)
from inheritune.reporting.table import Column, Table
from inheritune.run_record.record import RunRecord

_MAX_POINTS = 900  # of all lines of a chart, raw and smoothed together
_MAX_TABLE_ROWS = 150


def training_chart(record: RunRecord, curves: Sequence[Curve]) -> Chart | None:
    """Draw the training loss of every step, and smoothed; None where no step is recorded."""
    lines = train_lines(record, curves, _MAX_POINTS)
    if not lines:
        return None
    table, left_out = _table(lines, Column("training loss", "nats", loss), "training-loss")
    return Chart(
        name="training-loss",
        title="Training loss",
        caption=f"{_smoothing(curves)} Measured on the text of each step, before the update. A "
        "distilled variant minimises another loss: compare val_loss instead.",
        alt=_alt("training loss", [f"{line.name} {loss(line.last['value'])}" for line in lines]),
        spec=line_chart(lines, _LOSS, events=events_of(curves)),
        table=table,
        left_out=left_out,
    )


def speed_chart(record: RunRecord, curves: Sequence[Curve]) -> Chart | None:
    """Draw tokens per second of every step, and smoothed; None where no speed is recorded."""
    lines = speed_lines(record, curves, _MAX_POINTS)
    if not lines:
        return None
    table, left_out = _table(lines, Column("speed", "tokens/s", exact), "speed")
    return Chart(
        name="speed",
        title="Training speed",
        caption=f"{_smoothing(curves)} Validations and saves between the steps are not included.",
        alt=_alt(
            "tokens per second", [f"{line.name} {exact(line.last['value'])}" for line in lines]
        ),
        spec=line_chart(lines, _SPEED, events=events_of(curves)),
        table=table,
        left_out=left_out,
    )


def _smoothing(curves: Sequence[Curve]) -> str:
    lengths = [len(curve.course.steps) for curve in curves if curve.course.steps]
    widths = sorted({smoothing_window(length) for length in lengths})
    steps = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    return f"Lines: mean of the last {steps} steps. Faint: single steps."


def _settled(line: Line) -> tuple[float, float]:
    """Find the lowest and highest smoothed value after the first tenth of each training."""
    values = [value_of(row) for part in line.parts for row in part[len(part) // 10 :]]
    return min(values), max(values)


def _whole(line: Line) -> tuple[float, float]:
    values = [value_of(row) for row in line.rows]
    return min(values), max(values)


_LOSS = Measure("loss", "training loss (nats per token)", loss, "loss", _settled, 0.15, 0.02)
_SPEED = Measure(
    key="tokens_per_s",
    title="tokens per second",
    show=amount,
    form="amount",
    frame=_whole,
    margin=0.1,
    from_zero=True,
    label_expr=AMOUNT_LABELS,
)


def _table(lines: Sequence[Line], column: Column, name: str) -> tuple[Table, str]:
    """List the smoothed values, few enough to read, and say what is left out."""
    limit = max(6, _MAX_TABLE_ROWS // sum(len(line.parts) for line in lines))
    values = [
        [line.name, row["tokens"], row["value"]]
        for line in lines
        for part in line.parts
        for row in thin(part, limit, value_of)
    ]
    total = sum(len(line.rows) for line in lines)
    columns = [Column("variant"), Column("tokens with earlier rounds", show=exact), column]
    left_out = "" if len(values) == total else "Only some of the smoothed values are listed."
    return Table(name, columns, values), left_out


def _alt(quantity: str, ends: Sequence[str]) -> str:
    return (
        f"Line chart of {quantity}, smoothed, with single steps behind it. At the end: "
        f"{'; '.join(ends[:12])}. The figures are in the table below the chart."
    )
