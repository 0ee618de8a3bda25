"""Charts of validation losses, with captions and texts for those who do not see them."""

from collections.abc import Sequence
from dataclasses import replace

from inheritune.reporting.curves import Curve, reference_points, thin
from inheritune.reporting.line_charts import Chart, Measure, line_chart
from inheritune.reporting.quantities import amount, loss
from inheritune.reporting.record import Record, benchmark_of, number, section
from inheritune.reporting.series import (
    REFERENCE,
    Line,
    Row,
    continued,
    growth,
    tokens_of,
    val_lines,
    value_of,
)
from inheritune.reporting.table import Table
from inheritune.reporting.tables import curves_table

__all__ = ["loss_charts", "val_loss_chart"]

_TABLE_ROWS = 300  # of a chart's data table, all trainings together


def loss_charts(record: Record, curves: Sequence[Curve]) -> list[Chart]:
    """Draw val_loss against tokens: this run, and this run beside the reference's own training.

    Args:
        record: ``run.json``.
        curves: The run's trainings.

    Returns:
        No chart when nothing was measured, and only the first when neither the reference's curve
        nor its token count is recorded.
    """
    lines = val_lines(record, curves)
    if not lines:
        return []
    benchmark = benchmark_of(record)
    levels = [] if benchmark is None else [(f"benchmark {loss(benchmark)}", benchmark)]
    begun = growth(curves)
    table, left_out = _curves_table(curves)
    first = val_loss_chart(lines, levels, begun, continued(curves))
    charts = [replace(first, table=table, left_out=left_out)]
    reference = _reference_line(record, benchmark)
    if reference:
        both = [*lines, reference]
        points = reference_points(record)
        own = Curve("reference", "the reference's own training", None, 0, 0, points)
        table, left_out = _curves_table([*curves, own])
        charts.append(
            Chart(
                "val-loss-log",
                "The same beside the reference's own training",
                "Tokens on a logarithmic axis, so the untrained starts are left out. The "
                "reference's curve is as recorded when it was trained; where its validation text "
                "was another, compare its level with care.",
                _alt("Line chart with a logarithmic token axis.", both, levels),
                line_chart(both, _measure(lines, levels), levels, begun, log=True),
                table,
                left_out,
            )
        )
    return charts


def val_loss_chart(
    lines: Sequence[Line],
    levels: Sequence[tuple[str, float]],
    begun: Sequence[tuple[Row, int | None]] = (),
    restarts: Sequence[Row] = (),
) -> Chart:
    """Validation loss, on any axis, without its table.

    Args:
        lines: At least one.
        levels: Label and level of each benchmark.
        begun: Where rounds begin, and with how many layers.
        restarts: Where trainings were continued.
    """
    return Chart(
        "val-loss",
        "Validation loss",
        _caption(begun, restarts, _frame(lines, [level for _, level in levels])[2]),
        _alt("Line chart of validation loss against training tokens.", lines, levels),
        line_chart(lines, _measure(lines, levels), levels, begun, restarts),
    )


def _reference_line(record: Record, benchmark: float | None) -> Line | None:
    points = [point for point in reference_points(record) if point[0] > 0]
    trained = number(section(record, "reference"), "trained_tokens")
    if not points and trained and benchmark is not None:
        points = [(int(trained), benchmark)]
    part: list[Row] = [{"tokens": tokens, "value": value} for tokens, value in points]
    return Line("the reference's own training", REFERENCE, [part]) if part else None


def _frame(lines: Sequence[Line], benchmarks: Sequence[float]) -> tuple[float, float, float | None]:
    """Bottom and top of the val_loss axis, and the highest loss above it, if any."""
    everything = [value_of(row) for line in lines for row in line.rows]
    # Untrained starts are several times the rest: in the frame, they would flatten all curves.
    settled = [
        value_of(row)
        for line in lines
        for part in line.parts
        for row in part
        if tokens_of(row) - tokens_of(part[0])
        >= 0.15 * (tokens_of(part[-1]) - tokens_of(part[0]))
        > 0
    ] or everything
    levels = [*settled, *benchmarks]
    bottom, top = min(levels), max(levels)
    margin = max(0.08 * (top - bottom), 0.01)
    highest = max(everything)
    return bottom - margin, top + margin, highest if highest > top + margin else None


def _measure(lines: Sequence[Line], levels: Sequence[tuple[str, float]]) -> Measure:
    bottom, top, _ = _frame(lines, [level for _, level in levels])
    return Measure("val_loss", "val_loss (nats per token)", ".4f", (bottom, top))


def _caption(
    begun: Sequence[tuple[Row, int | None]], restarts: Sequence[Row], hidden: float | None
) -> str:
    parts = []
    if len(begun) > 1:
        parts.append(
            "Rounds of the target stand one after another, so its line shows everything it cost; "
            "a dotted line marks where layers were added and training began afresh."
        )
    if restarts:
        parts.append(
            "A triangle on the axis marks where a training was continued from a checkpoint."
        )
    if hidden is not None:
        parts.append(
            f"The beginnings lie above the frame (up to {loss(hidden)} nats); they are in the "
            "data table."
        )
    return " ".join(parts)


def _alt(kind: str, lines: Sequence[Line], levels: Sequence[tuple[str, float]]) -> str:
    ends = [
        f"{line.name} ends at {loss(line.last['value'])} after {amount(line.last['tokens'])} tokens"
        for line in lines
    ]
    stands = " and ".join(loss(level) for _, level in levels)
    rule = f" The benchmark line stands at {stands}." if levels else ""
    return f"{kind} {'; '.join(ends[:12])}.{rule} The figures are in the table below the chart."


def _curves_table(curves: Sequence[Curve]) -> tuple[Table, str]:
    """The values of a chart, few enough to read, and a sentence on what is left out."""
    limit = max(6, _TABLE_ROWS // max(1, len(curves)))
    total = sum(len(curve.points) for curve in curves)
    table = curves_table([replace(curve, points=thin(curve.points, limit)) for curve in curves])
    if len(table.values) == total:
        return table, ""
    return table, f"{len(table.values)} of {total} values; all are in tables/curves.csv."
