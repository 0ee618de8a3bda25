"""Attention rank and mass as charts: every head of reference and target, and layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inheritune.reporting.line_charts import Chart
from inheritune.reporting.quantities import exact, percent, signed
from inheritune.reporting.record import Record, number, rows, section, text
from inheritune.reporting.section import Section
from inheritune.reporting.table import Column, Table

__all__ = ["attention_part"]

_HEIGHT = 340
# As in the loss curves: the target, and what it is compared with.
_STYLES = {
    "target": ("#3a7bd5", [1, 0], "circle"),
    "reference": ("#7b8088", [7, 4], "diamond"),
    "model": ("#3a7bd5", [1, 0], "circle"),
}
_MOST_LAYERS, _MOST_HEADS = 200, 200
_TABLE_ROWS = 60
_LABEL = 0.05  # height of a label, as a share of the chart's
_CALIBRATION = ("pure sink", "uniform over the past", "window of 8", "previous token")


@dataclass(frozen=True)
class _Layer:
    number: int
    max_rank: float | None
    mass: float | None
    lazy: bool
    heads: list[float]
    influence: float | None
    removal_loss: float | None
    sink: float | None
    near_one: float | None


@dataclass(frozen=True)
class _Model:
    role: str
    name: str
    layers: list[_Layer]

    @property
    def lazy(self) -> list[int]:
        return [layer.number for layer in self.layers if layer.lazy]


def attention_part(record: Record) -> Section | None:
    """Heat maps of every head, and rank, mass and importance layer by layer.

    Args:
        record: ``run.json``; anything of its ``analysis`` may be missing or wrong.

    Returns:
        None where nothing was analysed.
    """
    analysis = section(record, "analysis")
    models = [model for row in rows(analysis, "models") if (model := _model(row)).layers]
    if not models:
        return None
    tokens = number(section(analysis, "sequences"), "tokens_per_sequence") or 100.0
    last = max(layer.number for model in models for layer in model.layers)
    by_layer, by_head = _layers_table(models), _heads_table(models)
    charts = [
        _with_data(_heat_map(model, tokens, last), by_head)
        for model in models
        if any(layer.heads for layer in model.layers)
    ]
    known = section(analysis, "calibration")
    charts += [_with_data(chart, by_layer) for chart in _line_charts(models, known, tokens)]
    said = _sentences(analysis, models)
    return Section("inside", "Attention and layers", said, charts, files=[by_layer, by_head])


def _with_data(chart: Chart, table: Table) -> Chart:
    """A chart with its table, of which as much is shown as can be read."""
    if len(table.values) <= _TABLE_ROWS:
        return replace(chart, table=table)
    first = replace(table, values=table.values[:_TABLE_ROWS])
    left_out = f"{_TABLE_ROWS} of {len(table.values)} rows; all are in tables/{table.name}.csv."
    return replace(chart, table=first, left_out=left_out)


def _model(row: Mapping[str, Any]) -> _Model:
    attention, importance = section(row, "attention"), section(row, "importance")
    of_layers = {number(layer, "layer"): layer for layer in rows(importance, "layers")}
    seen = {number(layer, "layer"): layer for layer in rows(attention, "layers")}
    numbers = sorted(n for n in {*of_layers, *seen} if n is not None and 0 <= n < _MOST_LAYERS)
    layers = [_layer(int(n), seen.get(n, {}), of_layers.get(n, {})) for n in numbers]
    role = text(row, "role")
    return _Model(role if role in _STYLES else "model", text(row, "name")[:60], layers)


def _layer(index: int, seen: Mapping[str, Any], other: Mapping[str, Any]) -> _Layer:
    heads = seen.get("rank")
    return _Layer(
        number=index,
        max_rank=number(seen, "max_rank"),
        mass=number(seen, "avg_mass"),
        lazy=seen.get("lazy") is True,
        heads=[
            float(rank)
            for rank in (heads if isinstance(heads, list) else [])[:_MOST_HEADS]
            if isinstance(rank, int | float) and rank >= 1
        ],
        influence=number(other, "influence"),
        removal_loss=number(other, "removal_loss"),
        sink=number(seen, "sink_share"),
        near_one=number(seen, "heads_near_one"),
    )


def _sentences(analysis: Mapping[str, Any], models: Sequence[_Model]) -> list[str]:
    drawn, advice = section(analysis, "sequences"), section(analysis, "advice")
    count, length = number(drawn, "sequences"), number(drawn, "tokens_per_sequence")
    threshold = number(analysis, "threshold")
    said = [
        f"Measured on {exact(count)} sequences of {exact(length)} tokens, "
        f"{'each after BOS' if drawn.get('bos') is True else 'without BOS'}. Rank: how many "
        f"singular values of a head's causal attention hold {percent(threshold)} of their squares, "
        "mean over sequences; mass: how many columns do. A layer is lazy when all its heads have "
        "rank 1 on every sequence."
    ]
    for model in models:
        lazy = model.lazy
        named = f": {', '.join(map(str, lazy[:40]))}" if lazy else ""
        said.append(f"The {model.role} has {len(lazy)} lazy of {len(model.layers)} layers{named}.")
    paper, advised = number(advice, "paper"), number(advice, "advice")
    if paper is not None and advised is not None:
        said.append(
            f"Layers to begin with: {exact(paper)} as the papers do, {exact(advised)} by the "
            f"analysis ({text(advice, 'reason')[:200]})."
        )
    return said


# -- tables


def _layers_table(models: Sequence[_Model]) -> Table:
    columns = [
        Column("model"),
        Column("layer", show=exact),
        Column("MaxRank", show=_two_digits),
        Column("AvgMass", show=_two_digits),
        Column("sink share", show=percent),
        Column("heads below rank 1.5", show=percent),
        Column("lazy"),
        Column("influence", show=_three_digits),
        Column("loss without", "nats", signed),
    ]
    values = [
        [
            model.role,
            layer.number,
            layer.max_rank,
            layer.mass,
            layer.sink,
            layer.near_one,
            ("lazy" if layer.lazy else None) if layer.max_rank else "no attention",
            layer.influence,
            layer.removal_loss,
        ]
        for model in models
        for layer in model.layers
    ]
    notes = [
        "Influence: 1 − cosine of a layer's input and output. Loss without: how much the loss "
        "rises when the layer is skipped."
    ]
    return Table("layers", columns, values, notes)


def _heads_table(models: Sequence[_Model]) -> Table:
    columns = [
        Column("model"),
        Column("layer", show=exact),
        Column("head", show=exact),
        Column("rank", show=_two_digits),
    ]
    values = [
        [model.role, layer.number, head, rank]
        for model in models
        for layer in model.layers
        for head, rank in enumerate(layer.heads)
    ]
    return Table("attention-heads", columns, values)


def _two_digits(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _three_digits(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


# -- charts


def _heat_map(model: _Model, tokens: float, last: int) -> Chart:
    import altair as alt

    data = [
        {"layer": layer.number, "head": head, "rank": round(rank, 2)}
        for layer in model.layers
        for head, rank in enumerate(layer.heads)
    ]
    lazy = [{"layer": number, "label": "lazy"} for number in model.lazy]
    # One axis and one scale for all models, so that colours and places compare.
    x = alt.X("layer:O", scale=alt.Scale(domain=list(range(last + 1))), axis=_layer_axis(alt, last))
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
    role = model.role
    ranks = [row["rank"] for row in data]
    return Chart(
        f"attention-heads-{role}",
        f"Attention rank of every head of the {role}",
        f"Mean rank over sequences, on a logarithmic scale from 1 to {tokens:.0f}"
        + ("; lazy layers are marked." if lazy else "; no layer is lazy."),
        f"Heat map of {len(model.layers)} layers by {len(heads)} heads; ranks from "
        f"{min(ranks):.1f} to {max(ranks):.1f}. The figures are in the table below the chart.",
        _finished(alt.layer(*layers)),
    )


def _line_charts(models: Sequence[_Model], known: Mapping[str, Any], tokens: float) -> list[Chart]:
    of_rank, of_mass = (_levels(known, key, tokens) for key in ("rank", "mass"))
    wanted: Sequence[tuple[str, str, str, str, str, list[dict[str, Any]], float | None]] = (
        ("attention-rank", "Attention rank of each layer's fullest head", "max_rank", "MaxRank",
         "1 is a layer whose heads all collapsed to rank 1.", of_rank, tokens),
        ("attention-mass", "Attention mass of each layer", "mass", "AvgMass",
         "Mean over heads and sequences.", of_mass, tokens),
        ("layer-influence", "What each layer changes", "influence", "1 − cosine of in and output",
         "Near 0: the layer passes on what it is given.", [], None),
        ("layer-removal", "Loss without each layer", "removal_loss", "nats per token above all",
         "Each layer alone is skipped.", [], None),
    )  # fmt: skip
    charts = []
    for name, title, key, axis, caption, levels, top in wanted:
        data = [
            {"model": model.role, "layer": layer.number, "value": value, "lazy": layer.lazy}
            for model in models
            for layer in model.layers
            if (value := getattr(layer, key)) is not None
        ]
        if not data:
            continue
        lazy = "" if top is None or not any(row["lazy"] for row in data) else (
            " Lazy layers are ringed."
        )  # fmt: skip
        dotted = " Dotted: attention of a known form." if levels else ""
        ends = "; ".join(
            f"{model.role}: from {min(values):.2f} to {max(values):.2f}"
            for model in models
            if (values := [row["value"] for row in data if row["model"] == model.role])
        )
        alternative = f"Line chart by layer. {ends}. The figures are in the table below the chart."
        spec = _line_spec(models, data, axis, levels, top)
        charts.append(Chart(name, title, f"{caption}{lazy}{dotted}", alternative, spec))
    return charts


def _levels(known: Mapping[str, Any], key: str, top: float) -> list[dict[str, Any]]:
    """Lines to compare with; of those that nearly coincide, the upper one is labelled for all."""
    found = [(number(section(known, name), key), name) for name in _CALIBRATION]
    levels: list[dict[str, Any]] = []
    apart = (1.1 * top / 0.9) ** _LABEL  # the axis is logarithmic
    for value, name in sorted((value, name) for value, name in found if value):
        label = f"{name}: {value:.0f}"
        if levels and value < levels[-1]["value"] * apart:
            label = f"{levels[-1]['label']}, {label}"
            levels[-1]["label"] = ""
        levels.append({"value": value, "label": label})
    return levels


def _line_spec(
    models: Sequence[_Model],
    data: list[dict[str, Any]],
    axis: str,
    levels: list[dict[str, Any]],
    top: float | None,
) -> dict[str, Any]:
    import altair as alt

    last = max(row["layer"] for row in data)
    x = alt.X(
        "layer:Q",
        scale=alt.Scale(domain=[-0.3, last + 0.3], nice=False),
        axis=alt.Axis(title="layer, from the input", tickMinStep=1, format="d"),
    )
    scale = alt.Scale(type="log", domain=[0.9, 1.1 * top]) if top else alt.Scale(zero=False)
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=axis, tickCount=6))
    roles = list(dict.fromkeys(model.role for model in models))
    legend = alt.Legend(title=None, orient="bottom", symbolSize=110, symbolStrokeWidth=2)
    styles = [_STYLES[role] for role in roles]
    color = alt.Color(
        "model:N", scale=alt.Scale(domain=roles, range=[s[0] for s in styles]), legend=legend
    )
    shape = alt.Shape(
        "model:N", scale=alt.Scale(domain=roles, range=[s[2] for s in styles]), legend=legend
    )
    tooltip = [
        alt.Tooltip("model:N", title="model"),
        alt.Tooltip("layer:Q", title="layer"),
        alt.Tooltip("value:Q", title=axis, format=".3f"),
    ]
    layers = [
        alt.Chart(alt.Data(values=[row for row in data if row["model"] == role]))
        .mark_line(strokeWidth=2, strokeDash=_STYLES[role][1])
        .encode(x=x, y=y, color=color)
        for role in roles
    ]
    points = alt.Chart(alt.Data(values=data)).mark_point(size=54, filled=True, opacity=1)
    layers.append(points.encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip))
    rings = [row for row in data if row["lazy"]] if top else []
    if rings:
        ring = alt.Chart(alt.Data(values=rings)).mark_point(size=220, shape="circle")
        layers.append(ring.encode(x=x, y=y, color=color))
    if levels:
        base = alt.Chart(alt.Data(values=levels))
        layers.append(base.mark_rule(strokeDash=[1, 4]).encode(y=alt.Y("value:Q", scale=scale)))
        layers.append(
            base.mark_text(align="right", baseline="bottom", dy=-3).encode(
                x=alt.value("width"), y=alt.Y("value:Q", scale=scale), text="label:N"
            )
        )
    return _finished(alt.layer(*layers))


def _layer_axis(alt: Any, last: int) -> Any:
    every = max(1, -(-(last + 1) // 24))
    values = list(range(0, last + 1, every))
    return alt.Axis(
        title="layer, from the input", labelAngle=0, values=values, labelOverlap="parity"
    )


def _finished(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=_HEIGHT).to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec.pop("config", None)  # the page chooses light or dark
    return spec
