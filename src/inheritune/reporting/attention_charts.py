"""Chart attention rank and mass: every head of reference and target, and layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from inheritune.reporting.line_charts import legend
from inheritune.reporting.quantities import exact, formatted, percent, signed
from inheritune.reporting.section import Chart, PageSection, finished_spec
from inheritune.reporting.series import REFERENCE, TARGET, Style
from inheritune.reporting.table import Column, Table
from inheritune.run_record import (
    AnalysedModel,
    AnalysisRecord,
    LayerAttentionRecord,
    LayerImportanceRecord,
    Level,
    RunRecord,
)

# The same as in the loss curves.
_STYLES = {
    "target": TARGET,
    "reference": Style(REFERENCE.color, [7, 4], REFERENCE.shape),
    "model": TARGET,
}
_MAX_LAYERS, _MAX_HEADS = 200, 200
_MAX_TABLE_ROWS = 60
_LABEL_HEIGHT = 0.05  # share of the chart's height that a label takes
_CALIBRATION = ("pure sink", "uniform over the past", "window of 8", "previous token")


@dataclass(frozen=True)
class _Layer:
    role: str  # role of its model
    index: int
    attention: LayerAttentionRecord
    importance: LayerImportanceRecord

    @property
    def laziness(self) -> str | None:
        if not self.attention.max_rank:
            return "no attention"
        return "lazy" if self.attention.lazy else None

    @property
    def head_ranks(self) -> list[float]:
        return [float(rank) for rank in self.attention.rank[:_MAX_HEADS] if rank >= 1]


@dataclass(frozen=True)
class _Model:
    role: str
    layers: list[_Layer]

    @property
    def lazy(self) -> list[int]:
        return [layer.index for layer in self.layers if layer.attention.lazy]


@dataclass(frozen=True)
class _Measure:
    """A quantity that every layer has one value of."""

    name: str
    title: str
    axis: str
    caption: str
    value: Callable[[_Layer], float | None]
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
    models = [model for row in analysis.models if (model := _model(row)).layers]
    if not models:
        return None
    tokens = float(analysis.sequences.tokens_per_sequence or 100)
    last = max(layer.index for model in models for layer in model.layers)
    by_layer, by_head = _layers_table(models), _heads_table(models)
    charts = [
        _with_table(_heat_map(model, tokens, last), by_head)
        for model in models
        if any(layer.head_ranks for layer in model.layers)
    ]
    charts += [
        _with_table(_line_chart(models, measure, analysis.calibration, tokens), by_layer)
        for measure in _MEASURES
        if any(measure.value(layer) is not None for model in models for layer in model.layers)
    ]
    text = _sentences(analysis, models)
    return PageSection("inside", "Attention and layers", text, charts, files=[by_layer, by_head])


def _with_table(chart: Chart, table: Table) -> Chart:
    """Attach a table to a chart, cut to as many rows as can be read."""
    if len(table.values) <= _MAX_TABLE_ROWS:
        return replace(chart, table=table)
    first = replace(table, values=table.values[:_MAX_TABLE_ROWS])
    left_out = f"{_MAX_TABLE_ROWS} of {len(table.values)} rows; tables/{table.name}.csv has all."
    return replace(chart, table=first, left_out=left_out)


def _model(row: AnalysedModel) -> _Model:
    role = row.role if row.role in _STYLES else "model"
    attention = {layer.layer: layer for layer in row.attention.layers}
    importance = {layer.layer: layer for layer in row.importance.layers}
    indices = sorted(i for i in {*attention, *importance} if i is not None and 0 <= i < _MAX_LAYERS)
    no_attention, no_importance = LayerAttentionRecord(), LayerImportanceRecord()
    layers = [
        _Layer(role, int(i), attention.get(i, no_attention), importance.get(i, no_importance))
        for i in indices
    ]
    return _Model(role, layers)


def _sentences(analysis: AnalysisRecord, models: Sequence[_Model]) -> list[str]:
    sample, advice = analysis.sequences, analysis.advice
    sentences = [
        f"Measured on {exact(sample.sequences)} sequences of {exact(sample.tokens_per_sequence)} "
        f"tokens, {'each after BOS' if sample.bos else 'without BOS'}. Rank: number of singular "
        f"values of a head's causal attention matrix that hold {percent(analysis.threshold)} of "
        "their sum of squares, mean over sequences. Mass: the number of columns that do. A layer "
        "is lazy when all its heads have rank 1 on every sequence."
    ]
    for model in models:
        lazy = model.lazy
        which = f": {', '.join(map(str, lazy[:40]))}" if lazy else ""
        count = len(model.layers)
        sentences.append(f"The {model.role} has {len(lazy)} lazy of {count} layers{which}.")
    if advice.paper is not None and advice.advice is not None:
        sentences.append(
            f"Layers to start with: {exact(advice.paper)} by the papers' rule, "
            f"{exact(advice.advice)} by this analysis ({(advice.reason or '')[:200]})."
        )
    return sentences


# --- tables ---


def _layers_table(models: Sequence[_Model]) -> Table:
    return Table.of(
        "layers",
        [layer for model in models for layer in model.layers],
        [
            (Column("model"), "role"),
            (Column("layer", show=exact), "index"),
            (Column("MaxRank", show=formatted(".2f")), "attention.max_rank"),
            (Column("AvgMass", show=formatted(".2f")), "attention.avg_mass"),
            (Column("sink share", show=percent), "attention.sink_share"),
            (Column("heads below rank 1.5", show=percent), "attention.heads_near_one"),
            (Column("lazy"), "laziness"),
            (Column("influence", show=formatted(".3f")), "importance.influence"),
            (Column("loss without", "nats", signed), "importance.removal_loss"),
        ],
        [
            "Influence: 1 − cosine of a layer's input and output. Loss without: rise of the loss "
            "when the layer is skipped."
        ],
    )


def _heads_table(models: Sequence[_Model]) -> Table:
    columns = [
        Column("model"),
        Column("layer", show=exact),
        Column("head", show=exact),
        Column("rank", show=formatted(".2f")),
    ]
    values = [
        [model.role, layer.index, head, rank]
        for model in models
        for layer in model.layers
        for head, rank in enumerate(layer.head_ranks)
    ]
    return Table("attention-heads", columns, values)


# --- heat maps ---


def _heat_map(model: _Model, tokens: float, last: int) -> Chart:
    import altair as alt

    data = [
        {"layer": layer.index, "head": head, "rank": round(rank, 2)}
        for layer in model.layers
        for head, rank in enumerate(layer.head_ranks)
    ]
    lazy = [{"layer": index, "label": "lazy"} for index in model.lazy]
    # One axis and one scale for all models, so that colours and places compare.
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
    layers = [
        alt.Chart(alt.Data(values=data)).mark_rect().encode(x=x, y=y, color=color, tooltip=tooltip)
    ]
    if lazy:
        layers.append(
            alt.Chart(alt.Data(values=lazy))
            .mark_text(baseline="bottom", dy=-4)
            .encode(x=x, y=alt.value(0), text="label:N")
        )
    ranks = [row["rank"] for row in data]
    return Chart(
        name=f"attention-heads-{model.role}",
        title=f"Attention rank of every head of the {model.role}",
        caption=f"Mean rank over sequences, on a logarithmic scale from 1 to {tokens:.0f}"
        + ("; lazy layers are marked." if lazy else "; no layer is lazy."),
        alt=f"Heat map of {len(model.layers)} layers by {len(heads)} heads; ranks from "
        f"{min(ranks):.1f} to {max(ranks):.1f}. The figures are in the table below the chart.",
        spec=finished_spec(alt.layer(*layers)),
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
    models: Sequence[_Model], measure: _Measure, calibration: Mapping[str, Level], tokens: float
) -> Chart:
    levels = _levels(calibration, measure, tokens)
    data: list[dict[str, Any]] = [
        {"model": model.role, "layer": layer.index, "value": value, "lazy": layer.attention.lazy}
        for model in models
        for layer in model.layers
        if (value := measure.value(layer)) is not None
    ]
    lazy = [row for row in data if row["lazy"]] if measure.level else []
    rings = " Lazy layers are ringed." if lazy else ""
    dotted = " Dotted: attention patterns of known form." if levels else ""
    ranges = "; ".join(
        f"{model.role}: from {min(values):.2f} to {max(values):.2f}"
        for model in models
        if (values := [row["value"] for row in data if row["model"] == model.role])
    )
    roles = list(dict.fromkeys(model.role for model in models))
    return Chart(
        name=measure.name,
        title=measure.title,
        caption=f"{measure.caption}{rings}{dotted}",
        alt=f"Line chart by layer. {ranges}. The figures are in the table below the chart.",
        spec=_line_spec(roles, data, lazy, levels, measure, tokens),
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

    last = max(row["layer"] for row in data)
    x = alt.X(
        "layer:Q",
        scale=alt.Scale(domain=[-0.3, last + 0.3], nice=False),
        axis=alt.Axis(title="layer, from the input", tickMinStep=1, format="d"),
    )
    logarithmic = alt.Scale(type="log", domain=[0.9, 1.1 * tokens])
    scale = logarithmic if measure.level else alt.Scale(zero=False)
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=measure.axis, tickCount=6))
    color, shape = legend("model", {role: _STYLES[role] for role in roles})
    tooltip = [
        alt.Tooltip("model:N", title="model"),
        alt.Tooltip("layer:Q", title="layer"),
        alt.Tooltip("value:Q", title=measure.axis, format=".3f"),
    ]
    layers = [
        alt.Chart(alt.Data(values=[row for row in data if row["model"] == role]))
        .mark_line(strokeWidth=2, strokeDash=_STYLES[role].dash)
        .encode(x=x, y=y, color=color)
        for role in roles
    ]
    points = alt.Chart(alt.Data(values=data)).mark_point(size=54, filled=True, opacity=1)
    layers.append(points.encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip))
    if lazy:
        ring = alt.Chart(alt.Data(values=lazy)).mark_point(size=220, shape="circle")
        layers.append(ring.encode(x=x, y=y, color=color))
    if levels:
        base, height = alt.Chart(alt.Data(values=levels)), alt.Y("value:Q", scale=scale)
        layers.append(base.mark_rule(strokeDash=[1, 4]).encode(y=height))
        text = base.mark_text(align="right", baseline="bottom", dy=-3)
        layers.append(text.encode(x=alt.value("width"), y=height, text="label:N"))
    return finished_spec(alt.layer(*layers))
