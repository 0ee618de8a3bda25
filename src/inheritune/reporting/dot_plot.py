"""Plot the losses of variants trained on equally many tokens, the lowest first, with whiskers."""

from typing import Any

from inheritune.reporting.quantities import amount, loss
from inheritune.reporting.section import Chart, finished_spec
from inheritune.reporting.styles import MUTED, REFERENCE, Style, styles_of
from inheritune.reporting.table import Column, Table
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel

_FEWEST = 4  # variants; fewer are read from the table of results
_SAME_TOKENS = 0.02  # tokens that differ by this share count as equal
_ROW_HEIGHT = 26  # pixels
_WHISKERS = 2.0  # standard errors, or standard deviations over seeds, to each side


def dot_plot(record: RunRecord) -> Chart | None:
    """Plot the variants that had as many tokens as the target; None where they are few."""
    tokens = record.target.tokens
    rows = [
        row
        for row in record.variants
        if row.start != "trained" and row.val_loss is not None and tokens and row.tokens
        if abs(row.tokens - tokens) <= _SAME_TOKENS * tokens
    ]
    if len(rows) < _FEWEST:
        return None
    rows.sort(key=lambda row: row.val_loss or 0.0)
    columns = [
        Column("variant"),
        Column("layers", show=amount),
        Column("val_loss", "nats", loss),
        Column("SE or SD", show=loss),
    ]
    values = [[row.name, row.layers, row.val_loss, row.spread] for row in rows]
    first, last = rows[0], rows[-1]
    return Chart(
        name="variants",
        title=f"Variants on {amount(tokens)} tokens each",
        caption="Whiskers: two standard errors over windows or, with several seeds, two standard "
        "deviations over them; where none is seen, it is shorter than the mark. Tokens of earlier "
        "rounds are not counted here.",
        alt=f"Dot plot of {len(rows)} variants by validation loss, from {first.name} at "
        f"{loss(first.val_loss)} to {last.name} at {loss(last.val_loss)}; the reference is at "
        f"{loss(record.reference_loss)}. The figures are in the table below the chart.",
        spec=_spec(record, rows),
        table=Table("variants-on-equal-tokens", columns, values),
    )


def _spec(record: RunRecord, rows: list[TrainedModel]) -> dict[str, Any]:
    import altair as alt

    # --- data: a row for each variant ---
    styles = styles_of(record, [row.name or "" for row in rows])
    data = [_row(row, styles[row.name or ""]) for row in rows]
    level = record.reference_loss
    ends = [*(row["low"] for row in data), *(row["high"] for row in data)]
    ends += [] if level is None else [level]
    margin = 0.04 * (max(ends) - min(ends)) or 0.01

    # --- axes ---
    domain = [min(ends) - margin, max(ends) + margin]
    x = alt.X(
        "value:Q",
        scale=alt.Scale(domain=domain, nice=False, zero=False),
        axis=alt.Axis(title="val_loss (nats per token)", grid=True, tickCount=6),
    )
    names = alt.Axis(title=None, domain=False, ticks=False, labelLimit=220, labelPadding=10)
    y = alt.Y("name:N", sort=None, axis=names)
    look: dict[str, Any] = {
        "color": alt.Color("color:N", scale=None),
        "shape": alt.Shape("shape:N", scale=None),
    }

    # --- whiskers with their caps, marks, values; a rule at the reference ---
    base = alt.Chart(alt.Data(values=data))
    tooltip = [alt.Tooltip("name:N", title="variant"), alt.Tooltip("label:N", title="val_loss")]
    color: dict[str, Any] = {"color": look["color"]}
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y, **color),
        base.mark_tick(thickness=2, size=12).encode(x=alt.X("low:Q"), y=y, **color),
        base.mark_tick(thickness=2, size=12).encode(x=alt.X("high:Q"), y=y, **color),
        base.mark_point(size=64, filled=True, opacity=1).encode(x=x, y=y, **look, tooltip=tooltip),
        base.mark_text(align="left", dx=8).encode(x=alt.value("width"), y=y, text="label:N"),
    ]
    if level is not None:
        one = alt.Chart(alt.Data(values=[{"value": level, "label": f"reference {loss(level)}"}]))
        rule: dict[str, Any] = {
            "strokeDash": REFERENCE.dash,
            "strokeWidth": 1.5,
            "color": REFERENCE.color,
        }
        layers.append(one.mark_rule(**rule).encode(x="value:Q"))
        text = one.mark_text(align="left", baseline="bottom", dx=-2, dy=-4)
        layers.append(text.encode(x="value:Q", y=alt.value(0), text="label:N"))
    return finished_spec(alt.layer(*layers), height=_ROW_HEIGHT * len(rows))


def _row(row: TrainedModel, style: Style) -> dict[str, Any]:
    value, spread = row.val_loss or 0.0, row.spread or 0.0
    layers = "" if row.layers is None else f", {row.layers:.0f} layers"
    name = f"{(row.name or 'unnamed')[:40]}{layers}"
    digits = ".3f" if spread >= 5e-4 else ".1g"
    error = "" if row.spread is None else f" ± {spread:{digits}}"
    return {
        "name": name,
        "value": value,
        "low": value - _WHISKERS * spread,
        "high": value + _WHISKERS * spread,
        "label": f"{loss(value)}{error}",
        "color": MUTED if style.muted else style.color,
        "shape": style.shape,
    }
