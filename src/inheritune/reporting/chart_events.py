"""Mark on a line chart what happened: rounds of the target, restarts, levels to reach."""

from collections.abc import Sequence
from typing import Any

from inheritune.reporting.curves import Row
from inheritune.reporting.section import category, layer, number
from inheritune.reporting.series import Axis, on_axes
from inheritune.reporting.styles import REFERENCE

_LABEL_ROOM = 0.05  # share of the axis that a number of layers takes


def round_marks(
    rounds: Sequence[tuple[Row, int | None]],
    top: dict[str, float],
    axes: Sequence[Axis],
    end: float,
) -> list[dict[str, Any]]:
    """Mark where each round of the target begins, with its layers.

    Args:
        end: Tokens at the right end of the axis; 0: no labels.
    """
    marks = [
        on_axes(row, axes) | top | {"label": f"{layers:.0f}"}
        for row, layers in rounds
        if layers is not None
    ]
    rules = [mark for mark in marks if mark["tokens"]]
    if not rules:
        return []
    rule = {"type": "rule", "strokeDash": [1, 4], "strokeWidth": 1.5}
    layers = [layer(None, rules, rule, x=number("tokens"))]
    if end:
        (key,) = top
        text = {"y": number(key), "text": category("label")}
        above: dict[str, Any] = {"type": "text", "baseline": "bottom", "dy": -6}
        title, left = [top | {"label": "layers"}], above | {"align": "right", "dx": -10}
        layers += [
            layer("rounds title", title, left, x={"value": 0}, **text),
            layer("rounds", _apart(marks, end), above, x=number("tokens"), **text),
        ]
    return layers


def _apart(marks: Sequence[dict[str, Any]], end: float) -> list[dict[str, Any]]:
    """Leave out marks whose label would cover the one before; page.js does so by its width."""
    kept: list[dict[str, Any]] = []
    for mark in marks:
        if not kept or mark["tokens"] - kept[-1]["tokens"] >= _LABEL_ROOM * end:
            kept.append(mark)
    return kept


def restart_marks(
    restarts: Sequence[Row], bottom: dict[str, float], axes: Sequence[Axis]
) -> list[dict[str, Any]]:
    """Mark on the axis where trainings were continued from a checkpoint."""
    if not restarts:
        return []
    values = [on_axes(row, axes) | bottom | {"label": "continued here"} for row in restarts]
    mark = {"type": "point", "shape": "triangle-up", "size": 60, "filled": True, "opacity": 1}
    mark |= {"color": "#7b8088", "dy": -5}
    (key,) = bottom
    tooltip = [category("label", title="training")]
    at = {"x": number("tokens"), "y": number(key)}
    return [layer("restarts", values, mark, **at, tooltip=tooltip)]


def level_marks(levels: Sequence[tuple[str, float]], key: str) -> list[dict[str, Any]]:
    """Draw a horizontal line at each level."""
    if not levels:
        return []
    rows = [{key: level} for _, level in levels]
    rule = {"type": "rule", "strokeDash": REFERENCE.dash, "strokeWidth": 1.5}
    return [layer("levels", rows, rule | {"color": REFERENCE.color}, y=number(key))]
