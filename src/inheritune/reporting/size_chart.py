"""Chart quality against size: val_loss of evaluated models, with a line for each way of making."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError, escape
from inheritune.reporting.quantities import counted, loss
from inheritune.reporting.section import Chart, finished_spec
from inheritune.reporting.styles import OTHERS, REFERENCE, TARGET
from inheritune.reporting.vega import png, svg
from inheritune.run_record.measurements import EvaluatedModelRecord
from inheritune.system.files import write_bytes

_WHOLE = "whole"
# What inherit.json and training.json say of a model, in words.
_KINDS = {
    "trained": ("trained", TARGET),
    "repaired": ("cut and repaired", OTHERS[2]),
    "cut": ("cut", OTHERS[0]),
    "grown": ("layers put back", OTHERS[1]),
    _WHOLE: ("as it came", REFERENCE),
}
_WHISKERS = 2.0  # standard errors to each side


def quality_against_size(models: Sequence[EvaluatedModelRecord]) -> Chart | None:
    """Draw val_loss against parameters; None for fewer than two models with a loss.

    Each line ends at the model that is no cut, where there is exactly one.
    """
    rows = [row for model in models if (row := _row(model)) is not None]
    if len(rows) < 2:
        return None
    told = [f"{row['name']}, {row['label']}: {loss(row['value'])}" for row in rows]
    return Chart(
        name="quality-size",
        title="Quality against size",
        caption="Better is further down, smaller further left. Two standard errors to each side; "
        "what models have in common on these windows is in them too, so differences are surer.",
        alt=f"Chart of validation loss against parameters. {'; '.join(told[:24])}.",
        spec=_spec(rows),
    )


def _row(model: EvaluatedModelRecord) -> dict[str, Any] | None:
    measured = model.score("val_loss").metrics.get("val_loss")
    if measured is None or measured.value is None or not model.params:
        return None
    spread = _WHISKERS * (measured.se or 0.0)
    return {
        "name": (model.model or model.name or "")[-40:],
        "made": model.made if model.made in _KINDS else _WHOLE,
        "label": counted(int(model.layers or 0), "layer"),
        "params": model.params / 1e6,
        "value": measured.value,
        "low": measured.value - spread,
        "high": measured.value + spread,
    }


def _spec(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import altair as alt

    # --- axes ---
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    margin = 0.08 * (high - low) or 0.01
    x = alt.X(
        "params:Q",
        scale=alt.Scale(zero=False, nice=False, padding=40),
        axis=alt.Axis(title="parameters (millions)", tickCount=8),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[low - margin, high + margin], nice=False, zero=False),
        axis=alt.Axis(title="val_loss (nats per token)", tickCount=6),
    )
    tooltip = [
        alt.Tooltip("name:N", title="model"),
        alt.Tooltip("label:N", title="layers"),
        alt.Tooltip("value:Q", title="val_loss", format=".3f"),
    ]

    # --- a line, marks and a name for each kind; the number of layers at each point ---
    base = alt.Chart(alt.Data(values=list(rows)))
    layers = [base.mark_rule(color=REFERENCE.color).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")]
    texts = []  # over all lines, which would strike them through
    whole = [row for row in rows if row["made"] == _WHOLE]
    for kind, (words, style) in _KINDS.items():
        own = sorted((r for r in rows if r["made"] == kind), key=lambda row: row["params"])
        if not own:
            continue
        chart = alt.Chart(alt.Data(values=own)).encode(x=x, y=y, tooltip=tooltip)
        if kind != _WHOLE:
            line = alt.Chart(alt.Data(values=own + (whole if len(whole) == 1 else [])))
            drawn = line.mark_line(strokeWidth=2, strokeDash=style.dash, color=style.color)
            layers.append(drawn.encode(x=x, y=y))
        look: dict[str, Any] = {"shape": style.shape, "color": style.color, "filled": True}
        layers.append(chart.mark_point(size=80, opacity=1, **look))
        first = own[0] | {"label": f"{words}, {own[0]['label']}"}
        names = alt.Chart(alt.Data(values=[first, *own[1:]]))
        halos: list[dict[str, Any]] = [{"style": "halo"}, {}]
        for halo in halos:
            text = names.mark_text(align="left", dx=8, dy=-8, **halo)
            texts.append(text.encode(x=x, y=y, text="label:N"))
    return finished_spec(alt.layer(*layers, *texts))


def refuse_no_figure(file: Path, models: int, has_text: bool) -> None:
    """Raise RecipeError where a figure is asked for that could not be drawn."""
    if file.suffix.lower() not in (".png", ".svg"):
        raise RecipeError(f"--figure is {escape(file)}.", "Name a file that ends in .png or .svg.")
    if not file.absolute().parent.is_dir():
        raise RecipeError(
            f"--figure {escape(file)} lies in a directory that does not exist.", "Make it first."
        )
    if models < 2 or not has_text:
        lacks = "one model" if models < 2 else "no held-out text"
        raise RecipeError(
            f"--figure compares losses of models, and there is {lacks}.",
            "Name at least two models, and --tokens DIR or --text FILE.",
        )


def draw_evaluation(evaluation: Mapping[str, Any], file: Path) -> None:
    """Draw what `evaluate` measured, as PNG or SVG, by the ending of the file."""
    rows = [EvaluatedModelRecord.model_validate(row) for row in evaluation["models"]]
    chart = quality_against_size(rows)
    if chart is None:
        raise RecipeError("fewer than two losses were measured.", "Name other models.")
    drawn = svg(chart.spec).encode() if file.suffix.lower() == ".svg" else png(chart.spec)
    write_bytes(file, drawn)
