"""Mark on a line chart what happened: rounds of the target, restarts, levels to reach."""

from collections.abc import Sequence
from typing import Any

from inheritune.reporting.curves import Row
from inheritune.reporting.series import Axis, on_axes
from inheritune.reporting.styles import REFERENCE

_LABEL_ROOM = 0.05  # share of the axis that a number of layers takes


def round_marks(
    alt: Any,
    rounds: Sequence[tuple[Row, int | None]],
    top: dict[str, float],
    axes: Sequence[Axis],
    end: float,
) -> list[Any]:
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
    layers = [
        alt.Chart(alt.Data(values=rules))
        .mark_rule(strokeDash=[1, 4], strokeWidth=1.5)
        .encode(x=alt.X("tokens:Q"))
    ]
    if end:
        (key,) = top
        text: dict[str, Any] = {"y": alt.Y(f"{key}:Q"), "text": alt.Text("label:N")}
        above: dict[str, Any] = {"baseline": "bottom", "dy": -6}
        layers += [
            alt.Chart(alt.Data(values=[top | {"label": "layers"}]), name="rounds title")
            .mark_text(align="right", dx=-10, **above)
            .encode(x=alt.value(0), **text),
            alt.Chart(alt.Data(values=_apart(marks, end)), name="rounds")
            .mark_text(**above)
            .encode(x=alt.X("tokens:Q"), **text),
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
    alt: Any, restarts: Sequence[Row], bottom: dict[str, float], axes: Sequence[Axis]
) -> list[Any]:
    """Mark on the axis where trainings were continued from a checkpoint."""
    if not restarts:
        return []
    values = [on_axes(row, axes) | bottom | {"label": "continued here"} for row in restarts]
    marks = alt.Chart(alt.Data(values=values), name="restarts").mark_point(
        shape="triangle-up", size=60, filled=True, opacity=1, color="#7b8088", dy=-5
    )
    tooltip = [alt.Tooltip("label:N", title="training")]
    (key,) = bottom
    return [marks.encode(x=alt.X("tokens:Q"), y=alt.Y(f"{key}:Q"), tooltip=tooltip)]


def level_marks(alt: Any, levels: Sequence[tuple[str, float]], key: str) -> list[Any]:
    """Draw a horizontal line at each level."""
    if not levels:
        return []
    base = alt.Chart(alt.Data(values=[{key: level} for _, level in levels]), name="levels")
    rule = base.mark_rule(strokeDash=REFERENCE.dash, strokeWidth=1.5, color=REFERENCE.color)
    return [rule.encode(y=alt.Y(f"{key}:Q"))]
