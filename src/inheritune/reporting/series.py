"""What a line chart is drawn from: rows that know their place on every axis."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inheritune.reporting.curves import Curve, thin
from inheritune.reporting.record import Record, target_name

__all__ = [
    "OTHERS",
    "REFERENCE",
    "TARGET",
    "Axis",
    "Line",
    "Row",
    "Style",
    "axes_of",
    "continued",
    "growth",
    "on_axes",
    "smoothed",
    "speed_lines",
    "tokens_of",
    "train_lines",
    "val_lines",
    "value_of",
    "window",
]

Row = dict[str, float | None]

_MOST_RESTARTS = 60  # marks on an axis


@dataclass(frozen=True)
class Style:
    """How a line is told from the others: not by its colour alone."""

    color: str
    dash: list[int]
    shape: str


# Middle tones: at least 3.5:1 against the page in light and in dark.
TARGET = Style("#3a7bd5", [1, 0], "circle")
REFERENCE = Style("#7b8088", [2, 3], "diamond")
OTHERS = [
    Style("#c4661a", [7, 4], "square"),
    Style("#9760d0", [9, 3, 2, 3], "triangle-up"),
    Style("#2c8f6a", [4, 2], "cross"),
    Style("#c2497f", [12, 4], "triangle-down"),
    Style("#8a7a1f", [3, 5], "triangle-right"),
]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: As in the legend.
        style: Colour, dash and marker.
        parts: One per round: rows of ``tokens``, ``steps``, ``flops``, ``seconds`` and ``value``.
        raw: The values behind a smoothed line, in the same form; or none.
    """

    name: str
    style: Style
    parts: list[list[Row]]
    raw: list[list[Row]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """All rows of the line, without the raw ones."""
        return [row for part in self.parts for row in part]

    @property
    def last(self) -> Row:
        """Where the line ends."""
        return self.parts[-1][-1]


@dataclass(frozen=True)
class Axis:
    """One choice of the horizontal axis.

    Attributes:
        key: Field of the chart's data.
        source: Field of the rows.
        label: On the button.
        title: Below the axis, with the unit.
        unit: What a row's value is divided by.
        end: The highest value of all lines, in that unit.
        label_expr: How Vega writes the ticks.
    """

    key: str
    source: str
    label: str
    title: str
    unit: float
    end: float
    label_expr: str


# Short steps such as 200K read better than 200,000; "s" would write G for billions.
_AMOUNT = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"
_POWER = "replace(format(datum.value, '~e'), 'e+', 'e')"
_PLAIN = "format(datum.value, '~g')"
_KNOWN_AXES = (
    ("tokens", "tokens", "tokens", "training tokens", _AMOUNT),
    ("steps", "steps", "steps", "optimizer steps", _AMOUNT),
    ("flops", "flops", "FLOPs", "FLOPs of training", _POWER),
    ("time", "seconds", "time", "time of training", _PLAIN),
)


def axes_of(lines: Sequence[Line]) -> list[Axis]:
    """The axes on which at least one line can be drawn; tokens first, and always there."""
    found = []
    for key, source, label, title, label_expr in _KNOWN_AXES:
        known = [v for line in lines for row in line.rows if (v := row.get(source)) is not None]
        most = max(known, default=0.0)
        if not most and key != "tokens":
            continue
        unit, name = _unit_of_time(most) if key == "time" else (1.0, "")
        titled = f"{title} ({name})" if name else title
        found.append(Axis(key, source, name or label, titled, unit, most / unit, label_expr))
    return found


def val_lines(
    record: Record, curves: Sequence[Curve], style: Callable[[int], Style] | None = None
) -> list[Line]:
    """Validation loss: one line per variant, the target's rounds one after another.

    Args:
        record: ``run.json``.
        curves: The run's trainings.
        style: Of the control of a number, counted from 0; None: as everywhere.
    """

    def rows(curve: Curve) -> list[Row]:
        return [curve.place(tokens) | {"value": value} for tokens, value in curve.points]

    return _by_variant(record, curves, rows, None, style)


def train_lines(record: Record, curves: Sequence[Curve], limit: int) -> list[Line]:
    """Training loss, smoothed, with the raw values behind it, thinned to about ``limit`` rows."""
    return _of_steps(record, curves, lambda curve: curve.course.losses, limit)


def speed_lines(record: Record, curves: Sequence[Curve], limit: int) -> list[Line]:
    """Tokens per second, smoothed, with the raw values behind them."""
    return _of_steps(record, curves, lambda curve: curve.course.speeds, limit)


def growth(curves: Sequence[Curve]) -> list[tuple[Row, int | None]]:
    """Where each round of the target begins, and with how many layers."""
    begun = [curve for curve in curves if curve.round and (curve.points or curve.course.steps)]
    return [(curve.place(0), curve.layers) for curve in begun]


def continued(curves: Sequence[Curve]) -> list[Row]:
    """Where trainings were continued from a checkpoint; not more than can be seen."""
    places = [curve.place(tokens) for curve in curves for tokens in curve.course.restarts]
    return places[:_MOST_RESTARTS]


def smoothed(values: Sequence[float], over: int) -> list[float]:
    """Mean of the last values at each place, those that are not finite left out.

    Args:
        values: In order; NaN where there is none.
        over: How many, at least 1; at the beginning there are fewer.
    """
    means, total, count = [], 0.0, 0
    for index, value in enumerate(values):
        if math.isfinite(value):
            total, count = total + value, count + 1
        if index >= over and math.isfinite(gone := values[index - over]):
            total, count = total - gone, count - 1
        means.append(total / count if count else math.nan)
    return means


def window(steps: int) -> int:
    """Over how many steps a line of so many is smoothed."""
    return max(5, steps // 50)


def _of_steps(
    record: Record,
    curves: Sequence[Curve],
    values_of: Callable[[Curve], Sequence[float]],
    limit: int,
) -> list[Line]:
    drawn = [curve for curve in curves if curve.course.steps]
    most = max(8, limit // max(1, 2 * len(drawn)))

    def raw(curve: Curve) -> list[Row]:
        return _thinned(curve, values_of(curve), most)

    def means(curve: Curve) -> list[Row]:
        values = values_of(curve)
        return _thinned(curve, smoothed(values, window(len(values))), most)

    return _by_variant(record, drawn, means, raw)


def _thinned(curve: Curve, values: Sequence[float], limit: int) -> list[Row]:
    known = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    tokens = curve.course.tokens
    return [curve.place(tokens[index]) | {"value": value} for index, value in thin(known, limit)]


def _by_variant(
    record: Record,
    curves: Sequence[Curve],
    rows: Callable[[Curve], list[Row]],
    raw: Callable[[Curve], list[Row]] | None = None,
    style: Callable[[int], Style] | None = None,
) -> list[Line]:
    target, lines, others = target_name(record), [], 0
    for name in dict.fromkeys(curve.variant for curve in curves):
        own = [curve for curve in curves if curve.variant == name]
        parts = [part for curve in own if (part := rows(curve))]
        if not parts:
            continue
        behind = [] if raw is None else [part for curve in own if (part := raw(curve))]
        if name == target:
            lines.append(Line(f"{name[:60]} (target)", TARGET, parts, behind))
            continue
        chosen = _style(others) if style is None else style(others)
        lines.append(Line(name[:60], chosen, parts, behind))
        others += 1
    return lines


def _style(index: int) -> Style:
    """Of the control of a number: none of the first 25 looks like another."""
    turn, place = divmod(index, len(OTHERS))
    own = OTHERS[place]
    if not turn:
        return own
    other = OTHERS[(place + turn) % len(OTHERS)]
    return Style(own.color, other.dash, other.shape)


def _unit_of_time(seconds: float) -> tuple[float, str]:
    if seconds >= 7200:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def on_axes(row: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    """A row's place on each axis, with as many digits as can be seen."""
    return {axis.key: _digits(row.get(axis.source), axis) for axis in axes}


def _digits(value: float | None, axis: Axis) -> float | None:
    if value is None:
        return None
    return int(value) if axis.key in ("tokens", "steps") else float(f"{value / axis.unit:.4g}")


def value_of(row: Row) -> float:
    """What a row is drawn at; 0 where it has nothing."""
    return row["value"] or 0.0


def tokens_of(row: Row) -> float:
    """Training tokens of a row; 0 where it has none."""
    return row["tokens"] or 0.0
