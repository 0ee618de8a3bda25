"""Chart attention rank and mass: every head of reference and target, and layer by layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from inheritune.reporting.attention_tables import (
    AnalysedLayer,
    LayersByRole,
    analysed_layers,
    heads_table,
    layers_table,
)
from inheritune.reporting.line_charts import BESIDE, spread
from inheritune.reporting.quantities import exact, percent
from inheritune.reporting.section import Chart, PageSection, finished_spec
from inheritune.reporting.styles import REFERENCE, TARGET
from inheritune.reporting.table import Table
from inheritune.run_record.measurements import AnalysisRecord, Level
from inheritune.run_record.record import RunRecord

_STYLES = {"target": TARGET, "reference": REFERENCE, "model": TARGET}
_MAX_TABLE_ROWS = 60
_LABEL_HEIGHT = 0.05  # share of the chart's height that a label takes
_NEAR_END = 0.85  # share of the layers after which a line's name stands right of the chart
# Attention patterns of known form, each with its name in the figure.
_CALIBRATION = {
    "pure sink": "sink",
    "uniform over the past": "uniform",
    "window of 8": "window",
    "previous token": "previous",
}


@dataclass(frozen=True)
class _Measure:
    """A quantity with one value per layer."""

    name: str
    title: str
    axis: str
    caption: str
    value: Callable[[AnalysedLayer], float | None]
    # Field of the attention patterns of known form to compare with, on a logarithmic axis that
    # ends at the number of tokens; empty: a linear axis.
    level: str = ""


_MEASURES = (
    _Measure(
        "attention-rank",
        "Attention rank of each layer's fullest head",
        "MaxRank",
        "1: all heads of the layer have collapsed to rank 1.",
        attrgetter("attention.max_rank"),
        "rank",
    ),
    _Measure(
        "attention-mass",
        "Attention mass of each layer",
        "AvgMass",
        "Mean over heads and sequences.",
        attrgetter("attention.avg_mass"),
        "mass",
    ),
    _Measure(
        "layer-influence",
        "Influence of each layer",
        "1 − cosine of input and output",
        "Near 0: the layer hardly changes its input.",
        attrgetter("importance.influence"),
    ),
    _Measure(
        "layer-removal",
        "Loss without each layer",
        "rise in nats per token",
        "Each layer is skipped alone.",
        attrgetter("importance.removal_loss"),
    ),
)


def attention_section(record: RunRecord) -> PageSection | None:
    """Chart every head, and rank, mass and importance of each layer; None without an analysis."""
    analysis = record.analysis or AnalysisRecord()
    models = analysed_layers(analysis)
    if not models:
        return None
    tokens = float(analysis.sequences.tokens_per_sequence or 100)
    by_layer, by_head = layers_table(models), heads_table(models)
    charts = [
        _with_table(_heat_map(models, role, tokens), by_head)
        for role, layers in models.items()
        if any(layer.head_ranks for layer in layers)
    ]
    charts += [
        _with_table(_line_chart(models, measure, analysis.calibration, tokens), by_layer)
        for measure in _MEASURES
        if any(measure.value(layer) is not None for layers in models.values() for layer in layers)
    ]
    text = _sentences(analysis, models)
    files = [by_layer, by_head]
    return PageSection("inside", "Attention and layers", text, charts, files=files, folded=True)


def _with_table(chart: Chart, table: Table) -> Chart:
    """Attach a table to a chart, cut to as many rows as can be read."""
    if len(table.values) <= _MAX_TABLE_ROWS:
        return replace(chart, table=table)
    first = replace(table, values=table.values[:_MAX_TABLE_ROWS])
    left_out = f"{_MAX_TABLE_ROWS} of {len(table.values)} rows; tables/{table.name}.csv has all."
    return replace(chart, table=first, left_out=left_out)


def _sentences(analysis: AnalysisRecord, models: LayersByRole) -> list[str]:
    sample, advice = analysis.sequences, analysis.advice
    sentences = [
        f"Measured on {exact(sample.sequences)} sequences of {exact(sample.tokens_per_sequence)} "
        f"tokens, {'each after BOS' if sample.bos else 'without BOS'}. Rank: number of singular "
        f"values of a head's causal attention matrix that hold {percent(analysis.threshold)} of "
        "their sum of squares, mean over sequences. Mass: the number of columns that hold as much. "
        "A layer is lazy when all its heads have rank 1 on every sequence."
    ]
    for role, layers in models.items():
        lazy = [layer.index for layer in layers if layer.attention.lazy]
        which = f": {', '.join(map(str, lazy[:40]))}" if lazy else ""
        sentences.append(f"The {role} has {len(lazy)} lazy of {len(layers)} layers{which}.")
    if advice.paper is not None and advice.advice is not None:
        sentences.append(
            f"Layers to start with: {exact(advice.paper)} by the papers' rule, "
            f"{exact(advice.advice)} by this analysis ({(advice.reason or '')[:200]}). This "
            "analysis is of validation text; a recipe with inherit.layers: advice goes by one of "
            "training text."
        )
    return sentences


# --- heat maps ---


def _heat_map(models: LayersByRole, role: str, tokens: float) -> Chart:
    import altair as alt

    layers = models[role]
    data = [
        {"layer": layer.index, "head": head, "rank": round(rank, 2)}
        for layer in layers
        for head, rank in enumerate(layer.head_ranks)
    ]
    lazy = [{"layer": layer.index, "label": "lazy"} for layer in layers if layer.attention.lazy]

    # --- one axis and one scale for all models, so that colours and places compare ---
    last = max(layer.index for layers in models.values() for layer in layers)
    every = max(1, -(-(last + 1) // 24))
    layer_axis = alt.Axis(
        title="layer, from the input",
        labelAngle=0,
        values=list(range(0, last + 1, every)),
        labelOverlap="parity",
    )
    x = alt.X("layer:O", scale=alt.Scale(domain=list(range(last + 1))), axis=layer_axis)
    heads = sorted({row["head"] for row in data})
    y = alt.Y("head:O", scale=alt.Scale(domain=heads), axis=alt.Axis(title="head"))
    scale = alt.Scale(type="log", domain=[1, max(tokens, 2)], scheme="viridis", clamp=True)
    color = alt.Color(
        "rank:Q", scale=scale, legend=alt.Legend(title="rank", orient="right", gradientLength=200)
    )
    tooltip = [alt.Tooltip(f"{name}:Q", title=name) for name in ("layer", "head", "rank")]

    # --- a cell for each head, and a word above each lazy layer ---
    cells = alt.Chart(alt.Data(values=data)).mark_rect()
    marks = [cells.encode(x=x, y=y, color=color, tooltip=tooltip)]
    if lazy:
        text = alt.Chart(alt.Data(values=lazy)).mark_text(baseline="bottom", dy=-4)
        marks.append(text.encode(x=x, y=alt.value(0), text="label:N"))
    ranks = [row["rank"] for row in data]
    return Chart(
        name=f"attention-heads-{role}",
        title=f"Attention rank of every head of the {role}",
        caption=f"Mean rank over sequences, on a logarithmic scale from 1 to {tokens:.0f}"
        + ("; lazy layers are marked." if lazy else "; no layer is lazy."),
        alt=f"Heat map of {len(layers)} layers by {len(heads)} heads; ranks from "
        f"{min(ranks):.1f} to {max(ranks):.1f}. The figures are in the table below the chart.",
        spec=finished_spec(alt.layer(*marks)),
    )


# --- one value per layer ---


def _levels(calibration: Mapping[str, Level], measure: _Measure) -> list[tuple[str, float]]:
    """List patterns of known form with their value, the lowest first; none on a linear axis."""
    if not measure.level:
        return []
    forms = [
        (name, getattr(calibration.get(name, Level()), measure.level)) for name in _CALIBRATION
    ]
    return sorted(((name, value) for name, value in forms if value), key=lambda level: level[1])


def _line_chart(
    models: LayersByRole, measure: _Measure, calibration: Mapping[str, Level], tokens: float
) -> Chart:
    levels = _levels(calibration, measure)
    data: list[dict[str, Any]] = [
        {"model": role, "layer": layer.index, "value": value, "lazy": layer.attention.lazy}
        for role, layers in models.items()
        for layer in layers
        if (value := measure.value(layer)) is not None
    ]
    lazy = [row for row in data if row["lazy"]] if measure.level else []
    rings = " Lazy layers are ringed." if lazy else ""
    known = ", ".join(f"{name}: {value:.0f}" for name, value in levels)
    dotted = f" Dotted: attention patterns of known form ({known})." if levels else ""
    ranges = "; ".join(
        f"{role}: from {min(values):.2f} to {max(values):.2f}"
        for role in models
        if (values := [row["value"] for row in data if row["model"] == role])
    )
    return Chart(
        name=measure.name,
        title=measure.title,
        caption=f"{measure.caption}{rings}{dotted}",
        alt=f"Line chart by layer. {ranges}. The figures are in the table below the chart.",
        spec=_line_spec(list(models), data, lazy, levels, measure, tokens),
    )


def _line_spec(
    roles: Sequence[str],
    data: Sequence[dict[str, Any]],
    lazy: Sequence[dict[str, Any]],
    levels: Sequence[tuple[str, float]],
    measure: _Measure,
    tokens: float,
) -> dict[str, Any]:
    import altair as alt

    # --- axes, colours and texts ---
    last = max(row["layer"] for row in data)
    x = alt.X(
        "layer:Q",
        scale=alt.Scale(domain=[-0.3, last + 0.3], nice=False),
        axis=alt.Axis(title="layer, from the input", tickMinStep=1, format="d"),
    )
    values = [row["value"] for row in data]
    domain = (0.9, 1.1 * tokens)
    if not measure.level:
        domain = min(0.0, *values), 1.05 * max(0.01, *values)
    scale = alt.Scale(type="log" if measure.level else "linear", domain=list(domain), nice=False)
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=measure.axis, tickCount=6))
    tooltip = [
        alt.Tooltip("model:N", title="model"),
        alt.Tooltip("layer:Q", title="layer"),
        alt.Tooltip("value:Q", title=measure.axis, format=".3f"),
    ]

    # --- a line for each model, with points; rings around lazy layers; levels; names ---
    layers = []
    for role in roles:
        rows, style = [row for row in data if row["model"] == role], _STYLES[role]
        chart = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, tooltip=tooltip)
        look: dict[str, Any] = {"shape": style.shape, "color": style.color, "filled": True}
        layers.append(chart.mark_line(strokeWidth=2, strokeDash=style.dash, color=style.color))
        layers.append(chart.mark_point(size=54, opacity=1, **look))
        ringed = [row for row in lazy if row["model"] == role]
        if ringed:
            ring = alt.Chart(alt.Data(values=ringed)).mark_point(size=220, color=style.color)
            layers.append(ring.encode(x=x, y=y))
    if levels:
        base = alt.Chart(alt.Data(values=[{"value": value} for _, value in levels]))
        layers.append(base.mark_rule(strokeDash=[1, 4]).encode(y=y))
    inside, beside = _names(roles, data, levels, domain, is_log=bool(measure.level))
    for names, place in ((inside, x), (beside, alt.value("width"))):
        if not names:
            continue
        text = alt.Chart(alt.Data(values=names)).encode(x=place, y=y, text="name:N")
        layers += [text.mark_text(style="halo", **BESIDE), text.mark_text(**BESIDE)]
        marks = alt.Chart(alt.Data(values=[name for name in names if name["shape"]]))
        layers.append(
            marks.mark_point(size=54, filled=True, opacity=1, xOffset=10).encode(
                x=place,
                y=y,
                color=alt.Color("color:N", scale=None),
                shape=alt.Shape("shape:N", scale=None),
            )
        )
    return finished_spec(alt.layer(*layers))


def _names(
    roles: Sequence[str],
    data: Sequence[dict[str, Any]],
    levels: Sequence[tuple[str, float]],
    domain: tuple[float, float],
    is_log: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Place the names of lines at their ends; near the right edge beside it, with the levels."""
    last = max(row["layer"] for row in data)
    ends = [row for role in roles for row in [r for r in data if r["model"] == role][-1:]]
    names = [
        {"name": row["model"], "layer": row["layer"], "value": row["value"]}
        | {"color": _STYLES[row["model"]].color, "shape": _STYLES[row["model"]].shape}
        for row in ends
    ]
    inside = [name for name in names if name["layer"] < _NEAR_END * last]
    beside = [name for name in names if name not in inside]
    beside += [{"name": _CALIBRATION[name], "value": value, "shape": ""} for name, value in levels]
    scaled: Callable[[float], float] = math.log if is_log else float
    low, high = map(scaled, domain)
    heights = [scaled(min(max(one["value"], domain[0]), domain[1])) for one in beside]
    heights = spread(heights, _LABEL_HEIGHT * (high - low), low, high)
    for one, height in zip(beside, heights, strict=True):
        one["value"] = math.exp(height) if is_log else height
    return inside, beside
