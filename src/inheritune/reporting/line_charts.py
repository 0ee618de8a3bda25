"""Describe line charts in Vega-Lite: lines named at their ends, axes to choose from, events."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.reporting.chart_events import level_marks, restart_marks, round_marks
from inheritune.reporting.curves import Row, thin
from inheritune.reporting.quantities import Formatter
from inheritune.reporting.section import CHART_HEIGHT, category, layer, layered_spec, number
from inheritune.reporting.series import (
    NO_EVENTS,
    Axis,
    Events,
    Line,
    axes_of,
    on_axes,
    tokens_of,
    value_of,
)
from inheritune.reporting.styles import MUTED, REFERENCE

_MAX_POINTS = 900  # of all lines of a chart together: keeps the page small
_MAX_MARKERS = 24  # of one line
_LABEL_HEIGHT = 16  # pixels
_LABEL_WIDTH = 210  # pixels; longer names end in "…"


@dataclass(frozen=True)
class Measure:
    """The vertical axis."""

    key: str  # field of the chart's data
    title: str  # text beside the axis, with the unit
    show: Formatter  # writes a value at the end of a line
    form: str  # how the page's script writes a value: `loss` or `amount`
    # Lowest and highest value of a line that must be in the frame.
    frame: Callable[[Line], tuple[float, float]]
    margin: float = 0.08  # share of the range that is left free at its ends
    least_margin: float = 0.01
    from_zero: bool = False
    label_expr: str = ""  # Vega expression of the tick labels; empty: Vega's own

    def domain(
        self, lines: Sequence[Line], levels: Sequence[tuple[str, float]]
    ) -> tuple[float, float]:
        """Return bottom and top of the axis."""
        ends = [end for line in lines for end in self.frame(line)]
        ends += [level for _, level in levels]
        low, high = 0.0 if self.from_zero else min(ends), max(ends)
        margin = max(self.margin * (high - low), self.least_margin)
        return (low if self.from_zero else low - margin), high + margin


def line_chart(
    lines: Sequence[Line],
    measure: Measure,
    levels: Sequence[tuple[str, float]] = (),
    events: Events = NO_EVENTS,
    log: bool = False,
    planned: float = 0.0,
) -> dict[str, Any]:
    """Describe a line chart.

    Args:
        lines: At least one, each with at least one row.
        levels: Label and height of each horizontal line.
        log: Use a logarithmic token axis, and offer no other.
        planned: Tokens that the axis reaches at least.

    Returns:
        The Vega-Lite description; its ``usermeta`` holds what the page's script needs to change
        axes, to name lines and to hide them.
    """
    # --- data and axes ---
    axes = axes_of(lines)[: 1 if log else None]
    domain = measure.domain(lines, levels)
    data, raw, markers = _data(lines, measure, axes, log, domain[1])
    tokens = [row["tokens"] for rows in data for row in rows]
    x = _x(axes[0], [*tokens, *([int(planned)] if planned else [])], log)
    ticks = {"labelExpr": measure.label_expr} if measure.label_expr else {}
    y = number(
        measure.key,
        scale={"domain": list(domain), "zero": False, "nice": False},
        axis={"title": measure.title, "tickCount": 6, **ticks},
    )

    # --- layers, from back to front: raw values, lines, markers, events, levels, names ---
    bottom, top = ({measure.key: value} for value in domain)
    meta = _choices(lines, axes, measure, levels, any(raw)) | {"planned": {"tokens": planned}}
    labels = _labels(meta["lines"], levels, measure, domain, planned)
    at = {"x": number("tokens"), "y": number(measure.key)}
    # What a mark shows is in its row, so that the page's script can change it.
    look = {"color": category("color", scale=None), "shape": category("shape", scale=None)}
    point = {"type": "point", "size": 54, "filled": True, "opacity": 1}
    text, label = {"type": "text", **BESIDE}, {**at, "text": category("label")}
    spec = layered_spec(
        [
            *_strokes("raw", raw, lines, x, y),
            *_strokes("line", data, lines, x, y),
            layer("markers", markers, point | {"clip": True}, x=x, y=y, **look),
            *round_marks(events.rounds, top, axes, 0 if log else max([planned, *tokens])),
            *restart_marks(events.restarts, bottom, axes),
            *level_marks(levels, measure.key),
            layer("labels halo", labels, text | {"style": "halo"}, **label),
            layer("labels text", labels, text, **label),
            layer("labels marks", labels, point | {"xOffset": 10}, **at, **look),
        ]
    )
    spec["usermeta"] = meta
    return spec


BESIDE: dict[str, Any] = {"align": "left", "baseline": "middle", "dx": 18, "limit": _LABEL_WIDTH}


def _choices(
    lines: Sequence[Line],
    axes: Sequence[Axis],
    measure: Measure,
    levels: Sequence[tuple[str, float]],
    raw: bool,
) -> dict[str, Any]:
    """Collect what the page's script needs to change axes and to name and hide lines."""
    return {
        "axes": [
            {
                "key": axis.key,
                "label": axis.label,
                "title": axis.title,
                "form": axis.form,
                "labelExpr": axis.label_expr,
            }
            for axis in axes
        ],
        "lines": [
            {
                "name": line.name,
                **vars(line.style),
                "glyph": line.style.glyph,
                "label": f"{line.name}  {measure.show(value_of(line.last))}",
                "frame": [float(f"{value:.6g}") for value in measure.frame(line)],
                "last": on_axes(line.last, axes) | {measure.key: value_of(line.last)},
            }
            for line in lines
        ],
        "measure": {
            "key": measure.key,
            "form": measure.form,
            "margin": measure.margin,
            "least": measure.least_margin,
            "zero": measure.from_zero,
        },
        "levels": [{"label": label, "value": level} for label, level in levels],
        "muted": MUTED,
        "raw": raw,
    }


def _labels(
    lines: Sequence[Mapping[str, Any]],
    levels: Sequence[tuple[str, float]],
    measure: Measure,
    domain: tuple[float, float],
    planned: float,
) -> list[dict[str, Any]]:
    """Place the name of each line that is not muted at its end; no two overlap."""
    key = measure.key
    named = [line for line in lines if not line["muted"]]
    rows = [{"label": line["label"], **_mark(line), **line["last"]} for line in named]
    # A level has no end on an axis: its name stands at the right, where the longest line ends.
    ends = {
        name: max((line["last"][name] or 0 for line in lines), default=0)
        for name in (lines[0]["last"] if lines else {})
    }
    ends["tokens"] = max(ends.get("tokens", 0), planned)
    for label, level in levels:
        mark = {"color": REFERENCE.color, "shape": REFERENCE.shape}
        rows.append({"label": label, **mark, **ends, key: level})
    gap = (domain[1] - domain[0]) * _LABEL_HEIGHT / CHART_HEIGHT
    heights = spread([row[key] for row in rows], gap, *domain)
    return [row | {key: height} for row, height in zip(rows, heights, strict=True)]


def _mark(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": line["color"], "shape": line["shape"]}


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights apart to at least ``gap``, in their order, between ``low`` and ``high``.

    The mean of lifting the upper ones and of lowering the lower ones, so that none moves far.
    Where there is no room for that, they are as far apart as there is room for.
    """
    gap = min(gap, (high - low) / max(1, len(heights) - 1))
    up = _lifted(heights, gap, low, high)
    # Turned round, so that of equal heights the same one stays the upper one.
    down = _lifted([-height for height in reversed(heights)], gap, -high, -low)
    return [(above - below) / 2 for above, below in zip(up, reversed(down), strict=True)]


def _lifted(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: list[float] = []
    for index in order:
        wanted = min(max(heights[index], low), high)
        placed.append(max(wanted, placed[-1] + gap) if placed else wanted)
    ceiling = high
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    return [placed[order.index(index)] for index in range(len(heights))]


def _x(axis: Axis, tokens: Sequence[int], log: bool) -> dict[str, Any]:
    first, last = min(tokens, default=0), max(tokens, default=0)
    title, ticks, domain = axis.title, {}, [0, 1.02 * last or 1]
    if log:
        title, domain = f"{title} (logarithmic)", [0.85 * first, 1.15 * last]
        ticks["values"] = _log_ticks(*domain)  # Vega would set too many
    scale = {"type": "log" if log else "linear", "domain": domain, "nice": False}
    shown = {"title": title, "labelExpr": axis.label_expr, "tickCount": 6, "labelOverlap": True}
    # No fractions of a token: a tick of 0.2 would read "200m".
    return number(axis.key, scale=scale, axis={**shown, "tickMinStep": 1, **ticks})


def _log_ticks(low: float, high: float) -> list[int]:
    """List round numbers from ``low`` to ``high``: 1 and 3 times powers of ten, more if few fit."""
    for digits in ((1, 3), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        powers = range(len(str(int(high))) + 1)
        ticks = sorted({int(d * 10**p) for p in powers for d in digits if low <= d * 10**p <= high})
        if len(ticks) >= 3:
            return ticks
    return ticks


def _strokes(
    kind: str,
    data: Sequence[Sequence[Mapping[str, Any]]],
    lines: Sequence[Line],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Draw a layer per line, muted ones first; the page's script finds it by its name."""
    strokes = []
    for muted in (True, False):
        for index, (line, rows) in enumerate(zip(lines, data, strict=True)):
            if line.style.muted is not muted or not rows or (kind == "raw" and muted):
                continue
            look: dict[str, Any] = {"color": line.style.color, "strokeWidth": 2}
            look["strokeDash"] = line.style.dash
            if kind == "raw":
                look |= {"strokeWidth": 1, "opacity": 0.35, "strokeDash": [1, 0]}
            elif muted:
                look = {"color": MUTED, "strokeWidth": 1, "opacity": 0.6}
            mark = {"type": "line", "clip": True, **look}
            strokes.append(layer(f"{kind} {index}", rows, mark, x=x, y=y, detail=category("part")))
    return strokes


def _data(
    lines: Sequence[Line], measure: Measure, axes: Sequence[Axis], log: bool, top: float
) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """List rows of each line, of the raw values behind it, and of the markers of named lines."""
    data: list[list[dict[str, Any]]] = []
    raw: list[list[dict[str, Any]]] = []
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
        data.append([])
        for index, part in enumerate(line.parts):
            shown = [row for row in part if tokens_of(row) > 0 or not log]
            rows = chart_rows(line, index, thin(shown, limit, value_of))
            data[-1].extend(rows)
            if line.style.muted:
                continue
            every = max(1, -(-len(rows) // num_markers))
            look = {"color": line.style.color, "shape": line.style.shape}
            # Counted from the end: the last value is the one that is compared.
            markers.extend(row | look for row in rows[::-1][::every] if row[measure.key] <= top)
        parts = (chart_rows(line, index, part) for index, part in enumerate(line.raw))
        raw.append([row | {"raw": True} for rows in parts for row in rows])
    return data, raw, markers
