"""Draw validation losses, with captions and with texts for people who do not see the charts."""

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

from inheritune.reporting.curves import Curve, Row, reference_points, thin
from inheritune.reporting.line_charts import Measure, line_chart
from inheritune.reporting.progress import planned_end
from inheritune.reporting.quantities import amount, loss
from inheritune.reporting.section import Chart
from inheritune.reporting.series import (
    NO_EVENTS,
    Events,
    Line,
    events_of,
    tokens_of,
    val_lines,
    value_of,
)
from inheritune.reporting.styles import REFERENCE
from inheritune.reporting.table import Table
from inheritune.reporting.training_tables import curves_table
from inheritune.run_record.record import RunRecord

GREY = "Grey: the other variants. "  # the caption begins with it where there are any
# Where target and reference take less of the height than this, they have a chart of their own.
_FLAT = 0.25
_MAX_NAMED = 6  # variants that a caption names
_MAX_TABLE_ROWS = 300  # of a chart's data table, all trainings together


def loss_charts(record: RunRecord, curves: Sequence[Curve]) -> list[Chart]:
    """Draw val_loss against tokens: this run, and this run beside the reference's own training.

    The second is left out when neither the reference's curve nor its token count is recorded.
    """
    lines = val_lines(record, curves)
    if not lines:
        return []
    level = record.reference_loss
    levels = [] if level is None else [(f"reference  {loss(level)}", level)]
    events = events_of(curves)
    table, left_out = _data_table(curves)
    chart = val_loss_chart(lines, levels, events, planned_end(record, curves))
    charts = [replace(chart, table=table, left_out=left_out)]
    reference = _reference_line(record)
    if reference:
        both = [*lines, reference]
        points = reference_points(record)
        curve = Curve("reference", "the reference's own training", None, 0, points)
        table, left_out = _data_table([*curves, curve])
        charts.append(
            Chart(
                name="val-loss-log",
                title="Validation loss beside the reference's own training",
                caption="The token axis is logarithmic, so the untrained starts are left out. The "
                "reference's curve was recorded during its own training; if that used other "
                "validation text, compare the levels with care.",
                alt=_alt("Line chart with a logarithmic token axis.", both, levels),
                spec=line_chart(both, _MEASURE, levels, Events(events.rounds), log=True),
                table=table,
                left_out=left_out,
            )
        )
    return charts


def near_loss_chart(record: RunRecord, curves: Sequence[Curve]) -> Chart | None:
    """Draw val_loss in the range of target and reference, where other variants flatten them.

    Returns:
        None where the chart of all variants shows the two well enough.
    """
    lines, level = val_lines(record, curves), record.reference_loss
    target = [line for line in lines if line.is_target]
    if level is None or not target:
        return None
    levels = [(f"reference  {loss(level)}", level)]
    low, high = _MEASURE.domain(target, levels)
    top = high + (high - low)
    far = [line for line in lines if min(_frame(line)) > top]
    bottom, ceiling = _MEASURE.domain(lines, levels)
    if not far or high - low > _FLAT * (ceiling - bottom):
        return None
    near = [line for line in lines if line not in far]
    above = ", ".join(f"{line.name} ({loss(value_of(line.last))})" for line in far[:_MAX_NAMED])
    more = f" and {len(far) - _MAX_NAMED} more" if len(far) > _MAX_NAMED else ""
    chart = val_loss_chart(near, levels, events_of(curves), planned_end(record, curves))
    return replace(
        chart,
        name="val-loss-near",
        title="Validation loss near the reference",
        caption=f"The same losses, enlarged. Above this frame: {above}{more}. {chart.caption}",
        alt=_alt("Line chart of validation loss near the reference's.", near, levels, "before"),
    )


def val_loss_chart(
    lines: Sequence[Line],
    levels: Sequence[tuple[str, float]],
    events: Events = NO_EVENTS,
    planned: float = 0.0,
) -> Chart:
    """Draw validation loss and the reference losses, each with its label; without a data table."""
    return Chart(
        name="val-loss",
        title="Validation loss",
        caption=_caption(lines, levels, events),
        alt=_alt("Line chart of validation loss against training tokens.", lines, levels),
        spec=line_chart(lines, _MEASURE, levels, events, planned=planned),
    )


def _reference_line(record: RunRecord) -> Line | None:
    points = [point for point in reference_points(record) if point[0] > 0]
    trained_tokens, level = record.reference.trained_tokens, record.reference_loss
    if not points and trained_tokens and level is not None:
        points = [(int(trained_tokens), level)]
    part: list[Row] = [{"tokens": tokens, "value": value} for tokens, value in points]
    return Line("the reference's own training", REFERENCE, [part]) if part else None


def _frame(line: Line) -> tuple[float, float]:
    """Find the lowest and highest loss of a line, without the beginnings of its trainings."""
    # Untrained starts are several times the rest: in the frame, they would flatten all curves. So
    # the first 15 % of each training do not count.
    settled = []
    for part in line.parts:
        first, length = tokens_of(part[0]), tokens_of(part[-1]) - tokens_of(part[0])
        settled += [value_of(row) for row in part if tokens_of(row) - first >= 0.15 * length > 0]
    values = settled or [value_of(line.last)]
    return min(values), max(values)


_MEASURE = Measure("val_loss", "val_loss (nats per token)", loss, "loss", _frame)


def _caption(lines: Sequence[Line], levels: Sequence[tuple[str, float]], events: Events) -> str:
    highest, parts = max(value_of(row) for line in lines for row in line.rows), []
    if any(line.style.muted for line in lines):
        parts.append(GREY.strip())
    if len(events.rounds) > 1:
        parts.append(
            "The target's rounds follow one another, so its line shows everything it cost; a "
            "dotted line marks where layers were added and training started again."
        )
    if events.restarts:
        parts.append(
            "A triangle on the axis marks where a training was continued from a checkpoint."
        )
    if highest > _MEASURE.domain(lines, levels)[1]:
        parts.append(f"The first losses lie above the frame, up to {loss(highest)} nats.")
    return " ".join(parts)


def _alt(
    kind: str, lines: Sequence[Line], levels: Sequence[tuple[str, float]], place: str = "below"
) -> str:
    ends = [
        f"{line.name} ends at {loss(line.last['value'])} after {amount(line.last['tokens'])} tokens"
        for line in lines
    ]
    values = " and ".join(loss(level) for _, level in levels)
    rule = f" The reference loss is drawn at {values}." if levels else ""
    return f"{kind} {'; '.join(ends[:12])}.{rule} The figures are in the table {place} the chart."


def _data_table(curves: Sequence[Curve]) -> tuple[Table, str]:
    """List the values of a chart, few enough to read, and say what is left out."""
    limit = max(6, _MAX_TABLE_ROWS // max(1, len(curves)))
    total = sum(len(curve.points) for curve in curves)
    thinned = [thin(curve.points, limit, itemgetter(1)) for curve in curves]
    table = curves_table([replace(c, points=p) for c, p in zip(curves, thinned, strict=True)])
    if len(table.values) == total:
        return table, ""
    return table, f"{len(table.values)} of {total} values; tables/curves.csv has all of them."
