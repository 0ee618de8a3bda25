"""Line charts as Vega-Lite descriptions: strokes, axes to choose from, marks of events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.reporting.curves import thin
from inheritune.reporting.series import (
    Axis,
    Line,
    Row,
    axes_of,
    on_axes,
    tokens_of,
    value_of,
)
from inheritune.reporting.table import Table

__all__ = ["Chart", "Measure", "line_chart"]

_POINTS = 900  # of all lines of a chart together: keeps the page small
_MARKERS = 24  # of one line
_HEIGHT = 340


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: File name without ending.
        title: What it shows.
        caption: How to read it, and what is not on it.
        alt: The same for those who do not see it, with the figures.
        spec: Vega-Lite description, data included, as wide as its place. With ``axes`` under its
            ``usermeta``, the page lets its reader choose the axis and hide lines.
        table: Its values.
        left_out: A sentence on values that are not in the table.
    """

    name: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    table: Table | None = None
    left_out: str = ""


@dataclass(frozen=True)
class Measure:
    """What the vertical axis shows.

    Attributes:
        key: Field of the chart's data.
        title: Beside the axis, with the unit.
        tooltip: How Vega writes a value.
        domain: Bottom and top.
        label_expr: How Vega writes the ticks; nothing: as it likes.
    """

    key: str
    title: str
    tooltip: str
    domain: tuple[float, float]
    label_expr: str = ""


@dataclass(frozen=True)
class _Marks:
    benchmarks: Sequence[tuple[str, float]]
    growth: Sequence[tuple[Row, int | None]]
    restarts: Sequence[Row]


def line_chart(
    lines: Sequence[Line],
    measure: Measure,
    benchmarks: Sequence[tuple[str, float]] = (),
    begun: Sequence[tuple[Row, int | None]] = (),
    restarts: Sequence[Row] = (),
    log: bool = False,
) -> dict[str, Any]:
    """Describe a line chart.

    Args:
        lines: At least one, each with at least one row.
        measure: What the vertical axis shows.
        benchmarks: Label and level of each horizontal line.
        begun: Where rounds begin, and with how many layers.
        restarts: Where trainings were continued.
        log: A logarithmic token axis, and no other.

    Returns:
        The Vega-Lite description; its ``usermeta`` names the axes it can be drawn on, the lines,
        and whether there are raw values.
    """
    import altair as alt

    axes = axes_of(lines)[: 1 if log else None]
    data, raw, markers = _data(lines, measure, axes, log)
    x = _x(alt, axes[0], [row["tokens"] for row in data], log)
    ticks: dict[str, Any] = {"labelExpr": measure.label_expr} if measure.label_expr else {}
    y = alt.Y(
        f"{measure.key}:Q",
        scale=alt.Scale(domain=list(measure.domain), zero=False, nice=False),
        axis=alt.Axis(title=measure.title, tickCount=6, **ticks),
    )
    color, shape = _legend(alt, lines)
    layers = [
        *_strokes(alt, raw, lines, x, y, color, faint=True),
        *_strokes(alt, data, lines, x, y, color, faint=False),
        alt.Chart(alt.Data(values=markers))
        .mark_point(size=54, filled=True, opacity=1, clip=True)
        .encode(x=x, y=y, color=color, shape=shape, tooltip=_tooltip(alt, axes, measure)),
        *_mark_layers(alt, _Marks(benchmarks, begun, restarts), measure, axes, log),
    ]
    chart = alt.layer(*layers).properties(width="container", height=_HEIGHT)
    # Checking every row of the data against the schema takes longer than all the rest.
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec.pop("config", None)  # the page chooses light or dark
    spec["usermeta"] = _choices(lines, axes, bool(raw))
    return spec


def _choices(lines: Sequence[Line], axes: Sequence[Axis], raw: bool) -> dict[str, Any]:
    return {
        "axes": [
            {
                "key": axis.key,
                "label": axis.label,
                "title": axis.title,
                "end": _end(axis.end),
                "labelExpr": axis.label_expr,
            }
            for axis in axes
        ],
        "lines": [{"name": line.name, **vars(line.style)} for line in lines],
        "raw": raw,
    }


def _end(most: float) -> float:
    return 1.02 * most or 1


def _x(alt: Any, axis: Axis, tokens: Sequence[int], log: bool) -> Any:
    first, last = min(tokens, default=0), max(tokens, default=0)
    title, ticks, reach = axis.title, {}, [0, _end(last)]
    if log:
        title, reach = f"{title} (logarithmic)", [0.85 * first, 1.15 * last]
        ticks["values"] = _log_ticks(*reach)  # Vega would set too many
    scale = alt.Scale(type="log" if log else "linear", domain=reach, nice=False)
    shown = {"title": title, "labelExpr": axis.label_expr, "tickCount": 6, "labelOverlap": True}
    return alt.X(f"{axis.key}:Q", scale=scale, axis=alt.Axis(**shown, **ticks))


def _log_ticks(low: float, high: float) -> list[int]:
    """Round numbers from ``low`` to ``high``: 1 and 3 of each power of ten, more where few fit."""
    for digits in ((1, 3), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        powers = range(len(str(int(high))) + 1)
        found = sorted({int(d * 10**p) for p in powers for d in digits if low <= d * 10**p <= high})
        if len(found) >= 3:
            return found
    return found


def _legend(alt: Any, lines: Sequence[Line]) -> tuple[Any, Any]:
    names = [line.name for line in lines]
    legend = alt.Legend(title=None, orient="bottom", symbolSize=110, symbolStrokeWidth=2)
    colors = alt.Scale(domain=names, range=[line.style.color for line in lines])
    shapes = alt.Scale(domain=names, range=[line.style.shape for line in lines])
    return (
        alt.Color("variant:N", scale=colors, legend=legend),
        alt.Shape("variant:N", scale=shapes, legend=legend),
    )


def _tooltip(alt: Any, axes: Sequence[Axis], measure: Measure) -> list[Any]:
    shown = [alt.Tooltip("variant:N", title="variant")]
    for axis in axes:
        form = ",.0f" if axis.key in ("tokens", "steps") else ".3~g"
        form = ".2e" if axis.key == "flops" else form
        shown.append(alt.Tooltip(f"{axis.key}:Q", title=axis.label, format=form))
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
    for line in lines:
        rows = [row for row in data if row["variant"] == line.name]
        look = (
            {"strokeWidth": 1, "opacity": 0.35}
            if faint
            else {"strokeWidth": 2, "strokeDash": line.style.dash}
        )
        if rows:
            layer = alt.Chart(alt.Data(values=rows)).mark_line(clip=True, **look)
            strokes.append(layer.encode(x=x, y=y, color=color, detail="part:N"))
    return strokes


def _data(
    lines: Sequence[Line], measure: Measure, axes: Sequence[Axis], log: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the lines, of the raw values behind them, and of the markers."""
    data: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    markers: list[dict[str, Any]] = []
    limit = max(8, _POINTS // sum(len(line.parts) for line in lines))
    most = max(2, _MARKERS // 4) if any(line.raw for line in lines) else _MARKERS

    def rows(line: Line, index: int, part: Sequence[Row]) -> list[dict[str, Any]]:
        return [
            {"variant": line.name, "part": index, **on_axes(row, axes)}
            | {measure.key: float(f"{value_of(row):.6g}")}
            for row in part
        ]

    for line in lines:
        for index, part in enumerate(line.parts):
            shown = [row for row in part if tokens_of(row) > 0 or not log]
            kept = thin([(place, value_of(row)) for place, row in enumerate(shown)], limit)
            own = rows(line, index, [shown[place] for place, _ in kept])
            data.extend(own)
            every = max(1, -(-len(own) // most))
            # Counted from the end: the last value is the one that is compared.
            markers.extend(
                row for row in own[::-1][::every] if row[measure.key] <= measure.domain[1]
            )
        for index, part in enumerate(line.raw):
            raw.extend(row | {"raw": True} for row in rows(line, index, part))
    return data, raw, markers


def _mark_layers(
    alt: Any, marks: _Marks, measure: Measure, axes: Sequence[Axis], log: bool
) -> list[Any]:
    return [
        *_growth_layers(alt, marks.growth, measure, axes, log),
        *_restart_layers(alt, marks.restarts, {measure.key: measure.domain[0]}, axes),
        *_benchmark_layers(alt, marks.benchmarks, measure.key),
    ]


def _growth_layers(
    alt: Any,
    begun: Sequence[tuple[Row, int | None]],
    measure: Measure,
    axes: Sequence[Axis],
    log: bool,
) -> list[Any]:
    marks = [
        {**on_axes(row, axes), measure.key: measure.domain[1], "label": f"{layers} layers"}
        for row, layers in begun
        if layers is not None
    ]
    rules = [mark for mark in marks if mark["tokens"]]
    if not rules:
        return []
    drawn = [
        alt.Chart(alt.Data(values=rules))
        .mark_rule(strokeDash=[1, 4], strokeWidth=1.5)
        .encode(x="tokens:Q")
    ]
    if not log and len(marks) <= 6:
        drawn.append(
            alt.Chart(alt.Data(values=marks))
            .mark_text(align="left", baseline="bottom", dx=0, dy=-6)
            .encode(x="tokens:Q", y=f"{measure.key}:Q", text="label:N")
        )
    return drawn


def _restart_layers(
    alt: Any, restarts: Sequence[Row], at: dict[str, float], axes: Sequence[Axis]
) -> list[Any]:
    values = [on_axes(row, axes) | at | {"label": "continued here"} for row in restarts]
    if not values:
        return []
    marks = alt.Chart(alt.Data(values=values)).mark_point(
        shape="triangle-up", size=60, filled=True, opacity=1, color="#7b8088", dy=-5
    )
    tooltip = [alt.Tooltip("label:N", title="training")]
    (key,) = at
    return [marks.encode(x="tokens:Q", y=f"{key}:Q", tooltip=tooltip)]


def _benchmark_layers(alt: Any, levels: Sequence[tuple[str, float]], key: str) -> list[Any]:
    values = [{key: level, "label": label} for label, level in levels]
    if not values:
        return []
    base = alt.Chart(alt.Data(values=values))
    return [
        base.mark_rule(strokeDash=[6, 3], strokeWidth=1.5).encode(y=f"{key}:Q"),
        base.mark_text(align="left", baseline="top", dx=6, dy=5).encode(
            x=alt.value(0), y=f"{key}:Q", text="label:N"
        ),
    ]
