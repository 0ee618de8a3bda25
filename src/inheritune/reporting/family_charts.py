"""Chart the sizes that need no training: loss against size, from each round's target on."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from inheritune.model_files.layers import ranges
from inheritune.reporting.quantities import amount, exact, loss, signed
from inheritune.reporting.section import Chart, PageSection, finished_spec
from inheritune.reporting.styles import OTHERS, REFERENCE, TARGET, Style
from inheritune.reporting.table import Column, Field, Table
from inheritune.run_record.measurements import PatchedSizeRecord
from inheritune.run_record.record import RunRecord

_TEXT = (
    "Layers of the reference were put back into the trained target, as they are: each of these "
    "sizes exists with no further training. family.json has them all; inheritune patch writes one."
)


def family_section(record: RunRecord) -> PageSection | None:
    """The page's section on sizes that need no training; None where none were tried."""
    rows = [row for row in record.family if row.layers is not None]
    if not any(row.returned for row in rows):
        return None
    charts = [_chart(record, rows, "val_loss", "validation loss", record.reference_loss)]
    if any(row.kl is not None for row in rows):
        charts.append(_chart(record, rows, "kl", "KL divergence from the reference", 0.0))
    return PageSection("sizes", "Sizes without training", [_TEXT], charts, [family_table(rows)])


def family_table(rows: Sequence[PatchedSizeRecord]) -> Table:
    """Make a table with a row for each size of each round."""
    columns: list[Field] = [
        (Column("trained layers", show=exact), "trained_layers"),
        (Column("layers", show=exact), "layers"),
        (Column("came back"), _returned),
        (Column("parameters", show=amount), "params"),
        (Column("val_loss", "nats", loss), "val_loss"),
        (Column("SE", show=loss), "val_loss_se"),
        (Column("minus reference loss", "nats", signed), "difference"),
        (Column("paired SE", show=loss), "difference_se"),
    ]
    if any(row.kl is not None for row in rows):
        columns.append((Column("KL", "nats", loss), "kl"))
    return Table.of("sizes-without-training", rows, columns)


def _returned(row: PatchedSizeRecord) -> str:
    return ", ".join(ranges([int(layer) for layer in row.returned])) or "none, as trained"


def _chart(
    record: RunRecord,
    rows: Sequence[PatchedSizeRecord],
    key: str,
    title: str,
    level: float | None,
) -> Chart:
    value: Callable[[PatchedSizeRecord], float | None] = attrgetter(key)
    known = [(row, number) for row in rows if (number := value(row)) is not None]
    values = [number for _, number in known]
    total = record.reference_layers
    whole = "" if level is None else f" Dashed: the reference, {total or 'all'} layers."
    return Chart(
        name=f"sizes-{key.replace('_', '-')}",
        title=f"{title[:1].upper()}{title[1:]} by size, with no training",
        caption="Each line begins at a round's trained target; along it, layers of the reference "
        f"come back, untrained.{whole}",
        alt=f"Line chart of {title} by number of layers, from {min(values):.3f} to "
        f"{max(values):.3f} nats per token. The figures are in the table below the chart.",
        spec=_spec(known, key, title, level),
    )


def _spec(
    known: Sequence[tuple[PatchedSizeRecord, float]], key: str, title: str, level: float | None
) -> dict[str, Any]:
    import altair as alt

    # --- data: a line for each round ---
    data = [
        {
            "round": _line_name(row),
            "layers": row.layers,
            "value": float(f"{number:.6g}"),
            "back": _returned(row),
        }
        for row, number in known
    ]
    lines = list(dict.fromkeys(row["round"] for row in data))
    styles = {name: _style(index) for index, name in enumerate(lines)}

    # --- axes ---
    values = [number for _, number in known] + ([] if level is None else [level])
    margin = 0.06 * (max(values) - min(values) or 1.0)
    x = alt.X(
        "layers:Q",
        scale=alt.Scale(zero=False, nice=False, padding=12),
        axis=alt.Axis(title="layers", tickMinStep=1, format="d"),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[min(values) - margin, max(values) + margin], nice=False),
        axis=alt.Axis(title=f"{title} (nats per token)", tickCount=6),
    )
    tooltip = [
        alt.Tooltip("round:N", title="from"),
        alt.Tooltip("layers:Q", title="layers"),
        alt.Tooltip("back:N", title="came back"),
        alt.Tooltip("value:Q", title=key, format=".4f"),
    ]

    # --- a line with points for each round, its name at the start; a rule at the reference ---
    layers = []
    for name, style in styles.items():
        rows = [row for row in data if row["round"] == name]
        chart = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, tooltip=tooltip)
        look: dict[str, Any] = {"shape": style.shape, "color": style.color, "filled": True}
        layers.append(chart.mark_line(strokeWidth=2, strokeDash=style.dash, color=style.color))
        layers.append(chart.mark_point(size=60, opacity=1, **look))
        start = alt.Chart(alt.Data(values=rows[:1]))  # lines fall, and leave room above it
        halos: list[dict[str, Any]] = [{"style": "halo"}, {}]
        for halo in halos:
            text = start.mark_text(align="left", dx=8, dy=-8, **halo)
            layers.append(text.encode(x=x, y=y, text="round:N"))
    if level is not None:
        label = f"reference {loss(level)}"
        one = alt.Chart(alt.Data(values=[{"value": level, "label": label}]))
        rule: dict[str, Any] = {"strokeDash": REFERENCE.dash, "color": REFERENCE.color}
        layers.append(one.mark_rule(strokeWidth=1.5, **rule).encode(y="value:Q"))
        text = one.mark_text(align="left", baseline="bottom", dx=6, dy=-4)
        layers.append(text.encode(x=alt.value(0), y="value:Q", text="label:N"))
    return finished_spec(alt.layer(*layers))


def _line_name(row: PatchedSizeRecord) -> str:
    return f"{exact(row.trained_layers)} trained layers"


def _style(index: int) -> Style:
    return TARGET if index == 0 else OTHERS[(index - 1) % len(OTHERS)]
