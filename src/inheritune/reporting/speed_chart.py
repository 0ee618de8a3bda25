"""Chart quality against generation speed: a point for each model whose speed was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.reporting.quantities import counted, formatted, loss
from inheritune.reporting.section import Chart, finished_spec
from inheritune.reporting.styles import Style, styles_of
from inheritune.reporting.table import Column, Table
from inheritune.run_record.measurements import SpeedRecord
from inheritune.run_record.record import RunRecord

_WHISKERS = 2.0  # standard errors of val_loss to each side
_speed = formatted(",.3g")


@dataclass(frozen=True)
class _Point:
    name: str
    layers: int | None
    speed: float
    slow: float
    fast: float
    val_loss: float
    error: float | None
    style: Style

    @property
    def label(self) -> str:
        layers = "" if self.layers is None else f", {counted(self.layers, 'layer')}"
        return f"{self.name[:40]}{layers}"


def quality_against_speed(record: RunRecord) -> Chart | None:
    """Draw val_loss against tokens generated per second; None for fewer than two models."""
    gains = record.gains
    points = _points(record, gains.models) if gains else []
    if gains is None or len(points) < 2:
        return None
    told = [
        f"{p.label}: {_speed(p.speed)} tokens/s at a val_loss of {loss(p.val_loss)}" for p in points
    ]
    columns = [
        Column("model"),
        Column("layers", show=formatted(".0f")),
        Column("decode", "tokens/s", _speed),
        Column("lowest", "tokens/s", _speed),
        Column("highest", "tokens/s", _speed),
        Column("val_loss", "nats", loss),
        Column("SE", show=loss),
    ]
    values = [[p.name, p.layers, p.speed, p.slow, p.fast, p.val_loss, p.error] for p in points]
    return Chart(
        name="quality-speed",
        title="Quality against generation speed",
        caption="Better is further down and to the right. Speed: new tokens per second, median "
        f"with the lowest and the highest, on {gains.device or 'the machine of the run'}. "
        "Loss: two standard errors to each side.",
        alt=f"Chart of validation loss against generation speed. {'; '.join(told[:12])}. The "
        "figures are in the table below the chart.",
        spec=_spec(points),
        table=Table("quality-against-speed", columns, values),
    )


def _points(record: RunRecord, models: Sequence[SpeedRecord]) -> list[_Point]:
    """Pair the speed of each model with its loss; a model without either is left out."""
    losses = {row.name: (row.val_loss, row.val_loss_se) for row in record.variants}
    losses["reference"] = record.reference_loss, record.benchmark.val_loss_se
    losses["target"] = record.target_loss, record.target.val_loss_se
    names = {"target": record.target_name}  # which the colours go by
    styles = styles_of(record, [names.get(m.name or "", m.name or "") for m in models])
    points = []
    for model in models:
        name, speed = model.name or "", model.decode.median
        val_loss, error = losses.get(model.name, (None, None))
        if speed is None or val_loss is None:
            continue
        low, high = model.decode.low, model.decode.high
        points.append(
            _Point(
                name=name,
                layers=None if model.layers is None else int(model.layers),
                speed=speed,
                slow=speed if low is None else low,
                fast=speed if high is None else high,
                val_loss=val_loss,
                error=error,
                style=styles[names.get(name, name)],
            )
        )
    return points


def _spec(points: Sequence[_Point]) -> dict[str, Any]:
    import altair as alt

    # --- data: a row for each model; names stand on the side that has room ---
    middle = max(p.fast for p in points) / 2
    data = [_row(point) for point in points]
    margin = 0.12 * (max(r["high"] for r in data) - min(r["low"] for r in data)) or 0.01
    top, bottom = max(r["high"] for r in data) + margin, min(r["low"] for r in data) - margin

    # --- axes: speed from zero, so that twice as fast is twice as far ---
    x = alt.X(
        "speed:Q",
        scale=alt.Scale(domain=[0, 1.1 * max(p.fast for p in points)], nice=False),
        axis=alt.Axis(title="generation speed (new tokens per second)", tickCount=6),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[bottom, top], nice=False, zero=False),
        axis=alt.Axis(title="val_loss (nats per token)", tickCount=6),
    )
    color: dict[str, Any] = {"color": alt.Color("color:N", scale=None)}
    shape: dict[str, Any] = {"shape": alt.Shape("shape:N", scale=None)}
    tooltip = [
        alt.Tooltip("label:N", title="model"),
        alt.Tooltip("speed:Q", title="tokens/s", format=",.3~g"),
        alt.Tooltip("value:Q", title="val_loss", format=".3f"),
    ]

    # --- whiskers, marks, names ---
    base = alt.Chart(alt.Data(values=data))
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("slow:Q"), x2="fast:Q", y=y, **color),
        base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", **color),
        base.mark_point(size=90, filled=True, opacity=1).encode(
            x=x, y=y, **color, **shape, tooltip=tooltip
        ),
    ]
    halos: list[dict[str, Any]] = [{"style": "halo"}, {}]
    for is_left in (False, True):
        rows = [r for r, p in zip(data, points, strict=True) if (p.speed < middle) is is_left]
        side = alt.Chart(alt.Data(values=rows))
        for halo in halos:
            place: dict[str, Any] = (
                {"align": "left", "dx": 10} if is_left else {"align": "right", "dx": -10}
            )
            text = side.mark_text(dy=-10, **place, **halo)
            layers.append(text.encode(x=x, y=y, text="label:N"))
    return finished_spec(alt.layer(*layers))


def _row(point: _Point) -> dict[str, Any]:
    spread = _WHISKERS * (point.error or 0.0)
    return {
        "label": point.label,
        "speed": point.speed,
        "slow": point.slow,
        "fast": point.fast,
        "value": point.val_loss,
        "low": point.val_loss - spread,
        "high": point.val_loss + spread,
        "color": point.style.color,
        "shape": point.style.shape,
    }
