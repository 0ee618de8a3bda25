"""Describe line charts in Vega-Lite: lines, axes to choose from, and marks of events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.reporting.curves import Row, thin
from inheritune.reporting.section import finished_spec
from inheritune.reporting.series import (
    NO_EVENTS,
    Axis,
    Events,
    Line,
    Style,
    axes_of,
    on_axes,
    tokens_of,
    value_of,
)

_MAX_POINTS = 900  # of all lines of a chart together: keeps the page small
_MAX_MARKERS = 24  # of one line


@dataclass(frozen=True)
class Measure:
    """The vertical axis."""

    key: str  # field of the chart's data
    title: str  # text beside the axis, with the unit
    tooltip: str  # Vega number format of a value
    domain: tuple[float, float]  # bottom, top
    label_expr: str = ""  # Vega expression of the tick labels; empty: Vega's own


def line_chart(
    lines: Sequence[Line],
    measure: Measure,
    levels: Sequence[tuple[str, float]] = (),
    events: Events = NO_EVENTS,
    log: bool = False,
) -> dict[str, Any]:
    """Describe a line chart.

    Args:
        lines: At least one, each with at least one row.
        levels: Label and height of each horizontal line.
        log: Use a logarithmic token axis, and offer no other.

    Returns:
        The Vega-Lite description; its ``usermeta`` names the axes it can be drawn on, the lines,
        and whether there are raw values.
    """
    import altair as alt

    # --- data and axes ---
    axes = axes_of(lines)[: 1 if log else None]
    data, raw, markers = _data(lines, measure, axes, log)
    x = _x(alt, axes[0], [row["tokens"] for row in data], log)
    ticks: dict[str, Any] = {"labelExpr": measure.label_expr} if measure.label_expr else {}
    y = alt.Y(
        f"{measure.key}:Q",
        scale=alt.Scale(domain=list(measure.domain), zero=False, nice=False),
        axis=alt.Axis(title=measure.title, tickCount=6, **ticks),
    )
    color, shape = legend("variant", {line.name: line.style for line in lines})

    # --- layers, from back to front: raw values, lines, markers, events, levels ---
    bottom, top = ({measure.key: value} for value in measure.domain)
    spec = finished_spec(
        alt.layer(
            *_strokes(alt, raw, lines, x, y, color, faint=True),
            *_strokes(alt, data, lines, x, y, color, faint=False),
            alt.Chart(alt.Data(values=markers))
            .mark_point(size=54, filled=True, opacity=1, clip=True)
            .encode(x=x, y=y, color=color, shape=shape, tooltip=_tooltip(alt, axes, measure)),
            *_round_marks(alt, events.rounds, top, axes, with_labels=not log),
            *_restart_marks(alt, events.restarts, bottom, axes),
            *_level_marks(alt, levels, measure.key),
        )
    )
    spec["usermeta"] = _choices(lines, axes, bool(raw))
    return spec


def _choices(lines: Sequence[Line], axes: Sequence[Axis], raw: bool) -> dict[str, Any]:
    """Collect what the page's script needs to change axes and hide lines."""
    return {
        "axes": [
            {
                "key": axis.key,
                "label": axis.label,
                "title": axis.title,
                "end": _axis_end(axis.end),
                "labelExpr": axis.label_expr,
            }
            for axis in axes
        ],
        "lines": [{"name": line.name, **vars(line.style)} for line in lines],
        "raw": raw,
    }


def _axis_end(highest: float) -> float:
    return 1.02 * highest or 1


def _x(alt: Any, axis: Axis, tokens: Sequence[int], log: bool) -> Any:
    first, last = min(tokens, default=0), max(tokens, default=0)
    title, ticks, domain = axis.title, {}, [0, _axis_end(last)]
    if log:
        title, domain = f"{title} (logarithmic)", [0.85 * first, 1.15 * last]
        ticks["values"] = _log_ticks(*domain)  # Vega would set too many
    scale = alt.Scale(type="log" if log else "linear", domain=domain, nice=False)
    shown = {"title": title, "labelExpr": axis.label_expr, "tickCount": 6, "labelOverlap": True}
    return alt.X(f"{axis.key}:Q", scale=scale, axis=alt.Axis(**shown, **ticks))


def _log_ticks(low: float, high: float) -> list[int]:
    """List round numbers from ``low`` to ``high``: 1 and 3 times powers of ten, more if few fit."""
    for digits in ((1, 3), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        powers = range(len(str(int(high))) + 1)
        ticks = sorted({int(d * 10**p) for p in powers for d in digits if low <= d * 10**p <= high})
        if len(ticks) >= 3:
            return ticks
    return ticks


def legend(field: str, styles: Mapping[str, Style]) -> tuple[Any, Any]:
    """Encode the values of a field as colour and shape, with a legend below the chart."""
    import altair as alt

    shown = alt.Legend(title=None, orient="bottom", symbolSize=110, symbolStrokeWidth=2)
    colors = alt.Scale(domain=list(styles), range=[style.color for style in styles.values()])
    shapes = alt.Scale(domain=list(styles), range=[style.shape for style in styles.values()])
    return (
        alt.Color(f"{field}:N", scale=colors, legend=shown),
        alt.Shape(f"{field}:N", scale=shapes, legend=shown),
    )


def _tooltip(alt: Any, axes: Sequence[Axis], measure: Measure) -> list[Any]:
    shown = [alt.Tooltip("variant:N", title="variant")]
    for axis in axes:
        number = ",.0f" if axis.key in ("tokens", "steps") else ".3~g"
        number = ".2e" if axis.key == "flops" else number
        shown.append(alt.Tooltip(f"{axis.key}:Q", title=axis.label, format=number))
    value = alt.Tooltip(f"{measure.key}:Q", title=measure.key, format=measure.tooltip)
    return [*shown, value]


def _strokes(
    alt: Any,
    data: Sequence[dict[str, Any]],
    lines: Sequence[Line],
    x: Any,
    y: Any,
    color: Any,
    faint: bool,
) -> list[Any]:
    # One layer per line: a scale of dashes would put dashed outlines into the legend.
    strokes = []
    faint_look = {"strokeWidth": 1, "opacity": 0.35}
    for line in lines:
        rows = [row for row in data if row["variant"] == line.name]
        look = faint_look if faint else {"strokeWidth": 2, "strokeDash": line.style.dash}
        if rows:
            layer = alt.Chart(alt.Data(values=rows)).mark_line(clip=True, **look)
            strokes.append(layer.encode(x=x, y=y, color=color, detail="part:N"))
    return strokes


def _data(
    lines: Sequence[Line], measure: Measure, axes: Sequence[Axis], log: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """List rows of the lines, of the raw values behind them, and of the markers."""
    data: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    markers: list[dict[str, Any]] = []
    limit = max(8, _MAX_POINTS // sum(len(line.parts) for line in lines))
    num_markers = max(2, _MAX_MARKERS // 4) if any(line.raw for line in lines) else _MAX_MARKERS

    def chart_rows(line: Line, index: int, part: Sequence[Row]) -> list[dict[str, Any]]:
        return [
            {"variant": line.name, "part": index, **on_axes(row, axes)}
            | {measure.key: float(f"{value_of(row):.6g}")}
            for row in part
        ]

    for line in lines:
        for index, part in enumerate(line.parts):
            shown = [row for row in part if tokens_of(row) > 0 or not log]
            rows = chart_rows(line, index, thin(shown, limit, value_of))
            data.extend(rows)
            every = max(1, -(-len(rows) // num_markers))
            # Counted from the end: the last value is the one that is compared.
            markers.extend(
                row for row in rows[::-1][::every] if row[measure.key] <= measure.domain[1]
            )
        for index, part in enumerate(line.raw):
            raw.extend(row | {"raw": True} for row in chart_rows(line, index, part))
    return data, raw, markers


def _round_marks(
    alt: Any,
    rounds: Sequence[tuple[Row, int | None]],
    top: dict[str, float],
    axes: Sequence[Axis],
    with_labels: bool,
) -> list[Any]:
    marks = [
        on_axes(row, axes) | top | {"label": f"{layers} layers"}
        for row, layers in rounds
        if layers is not None
    ]
    rules = [mark for mark in marks if mark["tokens"]]
    if not rules:
        return []
    layers = [
        alt.Chart(alt.Data(values=rules))
        .mark_rule(strokeDash=[1, 4], strokeWidth=1.5)
        .encode(x="tokens:Q")
    ]
    if with_labels and len(marks) <= 6:
        (key,) = top
        layers.append(
            alt.Chart(alt.Data(values=marks))
            .mark_text(align="left", baseline="bottom", dx=0, dy=-6)
            .encode(x="tokens:Q", y=f"{key}:Q", text="label:N")
        )
    return layers


def _restart_marks(
    alt: Any, restarts: Sequence[Row], bottom: dict[str, float], axes: Sequence[Axis]
) -> list[Any]:
    if not restarts:
        return []
    values = [on_axes(row, axes) | bottom | {"label": "continued here"} for row in restarts]
    marks = alt.Chart(alt.Data(values=values)).mark_point(
        shape="triangle-up", size=60, filled=True, opacity=1, color="#7b8088", dy=-5
    )
    tooltip = [alt.Tooltip("label:N", title="training")]
    (key,) = bottom
    return [marks.encode(x="tokens:Q", y=f"{key}:Q", tooltip=tooltip)]


def _level_marks(alt: Any, levels: Sequence[tuple[str, float]], key: str) -> list[Any]:
    if not levels:
        return []
    values = [{key: level, "label": label} for label, level in levels]
    base = alt.Chart(alt.Data(values=values))
    return [
        base.mark_rule(strokeDash=[6, 3], strokeWidth=1.5).encode(y=f"{key}:Q"),
        base.mark_text(align="left", baseline="top", dx=6, dy=5).encode(
            x=alt.value(0), y=f"{key}:Q", text="label:N"
        ),
    ]
