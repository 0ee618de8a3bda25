"""Turn the curves of a run into the lines of a chart, with a choice of horizontal axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from inheritune.reporting.curves import Curve, Row, thin
from inheritune.reporting.styles import Style, styles_of
from inheritune.run_record.record import RunRecord

_MAX_RESTARTS = 60  # marks on an axis


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    style: Style
    # Rows of each training that the line consists of; a round of the target is a part.
    parts: list[list[Row]]
    # Unsmoothed rows behind the line, by part; empty where the line is not smoothed.
    raw: list[list[Row]] = field(default_factory=list)

    is_target: bool = False

    @property
    def rows(self) -> list[Row]:
        """All rows of the line, without the raw ones."""
        return [row for part in self.parts for row in part]

    @property
    def last(self) -> Row:
        """The row at which the line ends."""
        return self.parts[-1][-1]


@dataclass(frozen=True)
class Events:
    """Moments that a chart marks."""

    # Start of each round of the target, and its number of layers.
    rounds: Sequence[tuple[Row, int | None]] = ()
    restarts: Sequence[Row] = ()  # moments at which a training was continued from a checkpoint


NO_EVENTS = Events()


@dataclass(frozen=True)
class Axis:
    """One choice of the horizontal axis."""

    key: str  # field of the chart's data
    source: str  # field of the rows
    label: str  # text of the button that chooses the axis
    title: str  # text below the axis, with the unit
    label_expr: str  # Vega expression of the tick labels
    form: str  # how the page writes its values: `amount`, `power` or `plain`
    unit: float = 1.0  # divisor of the rows' values
    end: float = 0.0  # highest value of all lines, in that unit


# Short steps such as 200K read better than 200,000; "s" alone would write G for billions.
AMOUNT_LABELS = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"
_POWER_LABELS = "replace(format(datum.value, '~e'), 'e+', 'e')"
_PLAIN_LABELS = "format(datum.value, '~g')"
_AXES = (
    Axis("tokens", "tokens", "tokens", "training tokens", AMOUNT_LABELS, "amount"),
    Axis("steps", "steps", "steps", "optimizer steps", AMOUNT_LABELS, "amount"),
    Axis("flops", "flops", "FLOPs", "training FLOPs", _POWER_LABELS, "power"),
    Axis("time", "seconds", "time", "training time", _PLAIN_LABELS, "plain"),
)


def axes_of(lines: Sequence[Line]) -> list[Axis]:
    """List the axes on which at least one line can be drawn; tokens first, and always there."""
    axes = []
    for axis in _AXES:
        rows = [row for line in lines for row in line.rows]
        values = [value for row in rows if (value := row.get(axis.source)) is not None]
        highest = max(values, default=0.0)
        if not highest and axis.key != "tokens":
            continue
        if axis.key == "time":
            unit, name = _time_unit(highest)
            axis = replace(axis, label=name, title=f"{axis.title} ({name})", unit=unit)
        axes.append(replace(axis, end=highest / axis.unit))
    return axes


def val_lines(record: RunRecord, curves: Sequence[Curve]) -> list[Line]:
    """Make lines of validation loss, one per variant, the target's rounds one after another."""

    def rows(curve: Curve) -> list[Row]:
        return [curve.position(tokens) | {"value": value} for tokens, value in curve.points]

    return _by_variant(record, curves, rows)


def train_lines(record: RunRecord, curves: Sequence[Curve], limit: int) -> list[Line]:
    """Make lines of smoothed and raw training loss, thinned to about ``limit`` rows together."""
    return _step_lines(record, curves, lambda curve: curve.course.losses, limit)


def speed_lines(record: RunRecord, curves: Sequence[Curve], limit: int) -> list[Line]:
    """Make lines of smoothed and raw tokens per second, thinned like `train_lines`."""
    return _step_lines(record, curves, lambda curve: curve.course.speeds, limit)


def events_of(curves: Sequence[Curve]) -> Events:
    """Collect starts of rounds and restarts; no more restarts than can be seen."""
    rounds = [curve for curve in curves if curve.round and curve.has_begun]
    restarts = [curve.position(tokens) for curve in curves for tokens in curve.course.restarts]
    starts = [(curve.position(0), curve.layers) for curve in rounds]
    return Events(starts, restarts[:_MAX_RESTARTS])


def moving_average(values: Sequence[float], width: int) -> list[float]:
    """Compute the mean of the last ``width`` values at each index, without those not finite.

    The first values are means over fewer. NaN where no value of the window is finite.
    """
    means, total, count = [], 0.0, 0
    for index, value in enumerate(values):
        if math.isfinite(value):
            total, count = total + value, count + 1
        if index >= width and math.isfinite(old := values[index - width]):
            total, count = total - old, count - 1
        means.append(total / count if count else math.nan)
    return means


def smoothing_window(steps: int) -> int:
    """Choose the width of the moving average: a fiftieth of the steps, at least 5."""
    return max(5, steps // 50)


def _step_lines(
    record: RunRecord,
    curves: Sequence[Curve],
    values_of: Callable[[Curve], Sequence[float]],
    limit: int,
) -> list[Line]:
    with_steps = [curve for curve in curves if curve.course.steps]
    # Half of the rows for the smoothed line, half for the raw values.
    rows_per_part = max(8, limit // max(1, 2 * len(with_steps)))

    def raw(curve: Curve) -> list[Row]:
        return _thinned(curve, values_of(curve), rows_per_part)

    def means(curve: Curve) -> list[Row]:
        values = values_of(curve)
        smooth = moving_average(values, smoothing_window(len(values)))
        return _thinned(curve, smooth, rows_per_part)

    return _by_variant(record, with_steps, means, raw)


def _thinned(curve: Curve, values: Sequence[float], limit: int) -> list[Row]:
    finite = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    points = thin(finite, limit, itemgetter(1))
    return [curve.position(curve.course.tokens[i]) | {"value": value} for i, value in points]


def _by_variant(
    record: RunRecord,
    curves: Sequence[Curve],
    rows: Callable[[Curve], list[Row]],
    raw: Callable[[Curve], list[Row]] | None = None,
) -> list[Line]:
    lines = []
    names = list(dict.fromkeys(curve.variant for curve in curves))
    styles = styles_of(record, names)
    for name in names:
        of_variant = [curve for curve in curves if curve.variant == name]
        parts = [part for curve in of_variant if (part := rows(curve))]
        if not parts:
            continue
        behind = [] if raw is None else [part for curve in of_variant if (part := raw(curve))]
        label = f"{name[:60]} (target)" if name == record.target_name else name[:60]
        lines.append(Line(label, styles[name], parts, behind, name == record.target_name))
    return lines


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds >= 7200:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def on_axes(row: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    """Locate a row on each axis, rounded to the digits that a chart can show."""
    return {axis.key: _rounded(row.get(axis.source), axis) for axis in axes}


def _rounded(value: float | None, axis: Axis) -> float | None:
    if value is None:
        return None
    return int(value) if axis.key in ("tokens", "steps") else float(f"{value / axis.unit:.4g}")


def value_of(row: Row) -> float:
    """Return the measured value of a row; 0 where there is none."""
    return row["value"] or 0.0


def tokens_of(row: Row) -> float:
    """Return the training tokens of a row; 0 where there are none."""
    return row["tokens"] or 0.0
