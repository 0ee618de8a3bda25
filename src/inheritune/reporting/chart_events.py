"""Mark on a line chart what happened: rounds of the target, restarts, levels to reach."""

from collections.abc import Sequence
from typing import Any

from inheritune.reporting.curves import Row
from inheritune.reporting.series import Axis, on_axes
from inheritune.reporting.styles import REFERENCE


def round_marks(
    alt: Any,
    rounds: Sequence[tuple[Row, int | None]],
    top: dict[str, float],
    axes: Sequence[Axis],
    with_labels: bool,
) -> list[Any]:
    """Mark where each round of the target begins, with its layers."""
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
        .encode(x=alt.X("tokens:Q"))
    ]
    if with_labels and len(marks) <= 6:
        (key,) = top
        layers.append(
            alt.Chart(alt.Data(values=marks), name="rounds")
            .mark_text(align="left", baseline="bottom", dx=0, dy=-6)
            .encode(x=alt.X("tokens:Q"), y=alt.Y(f"{key}:Q"), text=alt.Text("label:N"))
        )
    return layers


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
