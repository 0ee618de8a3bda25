"""Chart attention rank and mass: every head of reference and target, and layer by layer."""

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
from inheritune.reporting.quantities import exact, percent
from inheritune.reporting.section import Chart, PageSection, finished_spec
from inheritune.reporting.styles import REFERENCE, TARGET
from inheritune.reporting.table import Table
from inheritune.run_record.measurements import AnalysisRecord, Level
from inheritune.run_record.record import RunRecord

_STYLES = {"target": TARGET, "reference": REFERENCE, "model": TARGET}
_MAX_TABLE_ROWS = 60
_LABEL_HEIGHT = 0.05  # share of the chart's height that a label takes
_CALIBRATION = ("pure sink", "uniform over the past", "window of 8", "previous token")


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
        "their sum of squares, mean over sequences. Mass: the number of columns that do. A layer "
        "is lazy when all its heads have rank 1 on every sequence."
    ]
    for role, layers in models.items():
        lazy = [layer.index for layer in layers if layer.attention.lazy]
        which = f": {', '.join(map(str, lazy[:40]))}" if lazy else ""
        sentences.append(f"The {role} has {len(lazy)} lazy of {len(layers)} layers{which}.")
    if advice.paper is not None and advice.advice is not None:
        sentences.append(
            f"Layers to start with: {exact(advice.paper)} by the papers' rule, "
            f"{exact(advice.advice)} by this analysis ({(advice.reason or '')[:200]}). It is of "
            "validation text; inherit.layers: advice goes by the same of training text."
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


def _levels(
    calibration: Mapping[str, Level], measure: _Measure, top: float
) -> list[dict[str, Any]]:
    """Make lines to compare with; of those that nearly coincide, the upper one has all labels."""
    if not measure.level:
        return []
    forms = [(calibration.get(name, Level()), name) for name in _CALIBRATION]
    values = [(value, name) for form, name in forms if (value := getattr(form, measure.level))]
    levels: list[dict[str, Any]] = []
    nearest = (1.1 * top / 0.9) ** _LABEL_HEIGHT  # a ratio, since the axis is logarithmic
    for value, name in sorted(values):
        label = f"{name}: {value:.0f}"
        if levels and value < levels[-1]["value"] * nearest:
            label = f"{levels[-1]['label']}, {label}"
            levels[-1]["label"] = ""
        levels.append({"value": value, "label": label})
    return levels


def _line_chart(
    models: LayersByRole, measure: _Measure, calibration: Mapping[str, Level], tokens: float
) -> Chart:
    levels = _levels(calibration, measure, tokens)
    data: list[dict[str, Any]] = [
        {"model": role, "layer": layer.index, "value": value, "lazy": layer.attention.lazy}
        for role, layers in models.items()
        for layer in layers
        if (value := measure.value(layer)) is not None
    ]
    lazy = [row for row in data if row["lazy"]] if measure.level else []
    rings = " Lazy layers are ringed." if lazy else ""
    dotted = " Dotted: attention patterns of known form." if levels else ""
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
    levels: Sequence[dict[str, Any]],
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
    logarithmic = alt.Scale(type="log", domain=[0.9, 1.1 * tokens])
    scale = logarithmic if measure.level else alt.Scale(zero=False)
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=measure.axis, tickCount=6))
    tooltip = [
        alt.Tooltip("model:N", title="model"),
        alt.Tooltip("layer:Q", title="layer"),
        alt.Tooltip("value:Q", title=measure.axis, format=".3f"),
    ]

    # --- a line for each model, with points and its name; rings around lazy layers; levels ---
    layers = []
    for role in roles:
        rows, style = [row for row in data if row["model"] == role], _STYLES[role]
        chart = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, tooltip=tooltip)
        look: dict[str, Any] = {"shape": style.shape, "color": style.color, "filled": True}
        layers.append(chart.mark_line(strokeWidth=2, strokeDash=style.dash, color=style.color))
        layers.append(chart.mark_point(size=54, opacity=1, **look))
        # Of lines that end beside each other, one name stands above and one below.
        side = 10 if role == "reference" else -10
        end = alt.Chart(alt.Data(values=[row | {"name": role} for row in rows[-1:]]))
        halos: list[dict[str, Any]] = [{"style": "halo"}, {}]
        for halo in halos:
            text = end.mark_text(align="left", dx=8, dy=side, **halo)
            layers.append(text.encode(x=x, y=y, text="name:N"))
        ringed = [row for row in lazy if row["model"] == role]
        if ringed:
            ring = alt.Chart(alt.Data(values=ringed)).mark_point(size=220, color=style.color)
            layers.append(ring.encode(x=x, y=y))
    if levels:
        base, height = alt.Chart(alt.Data(values=levels)), alt.Y("value:Q", scale=scale)
        layers.append(base.mark_rule(strokeDash=[1, 4]).encode(y=height))
        text = base.mark_text(align="right", baseline="bottom", dy=-3)
        layers.append(text.encode(x=alt.value("width"), y=height, text="label:N"))
    return finished_spec(alt.layer(*layers))
