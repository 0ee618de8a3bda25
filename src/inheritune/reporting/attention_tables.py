"""Read the analysis of a run as one row per layer, and list layers and heads in tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inheritune.reporting.quantities import exact, formatted, percent, signed
from inheritune.reporting.table import Column, Table
from inheritune.run_record.measurements import (
    AnalysedModel,
    AnalysisRecord,
    LayerAttentionRecord,
    LayerImportanceRecord,
)

_ROLES = ("reference", "target", "model")
_MAX_LAYERS, _MAX_HEADS = 200, 200


@dataclass(frozen=True)
class AnalysedLayer:
    """The measurements of one layer."""

    role: str  # role of its model
    index: int  # position from the input, from 0
    attention: LayerAttentionRecord
    importance: LayerImportanceRecord

    @property
    def laziness(self) -> str | None:
        """Text of the column "lazy"; None for a layer that is not."""
        if not self.attention.max_rank:
            return "no attention"
        return "lazy" if self.attention.lazy else None

    @property
    def head_ranks(self) -> list[float]:
        """Attention rank of each head."""
        return [float(rank) for rank in self.attention.rank[:_MAX_HEADS] if rank >= 1]


# The layers of each analysed model, by its role.
LayersByRole = Mapping[str, Sequence[AnalysedLayer]]


def analysed_layers(analysis: AnalysisRecord) -> LayersByRole:
    """List the layers of each model; a model of which nothing is recorded is left out."""
    layers = {}
    for model in analysis.models:
        role = model.role if model.role in _ROLES else "model"
        if rows := _layers(model, role):
            layers[role] = rows
    return layers


def _layers(model: AnalysedModel, role: str) -> list[AnalysedLayer]:
    attention = {layer.layer: layer for layer in model.attention.layers}
    importance = {layer.layer: layer for layer in model.importance.layers}
    indices = sorted(i for i in {*attention, *importance} if i is not None and 0 <= i < _MAX_LAYERS)
    no_attention, no_importance = LayerAttentionRecord(), LayerImportanceRecord()
    return [
        AnalysedLayer(
            role, int(i), attention.get(i, no_attention), importance.get(i, no_importance)
        )
        for i in indices
    ]


def layers_table(models: LayersByRole) -> Table:
    """List rank, mass, laziness and importance, one row per layer."""
    return Table.of(
        "layers",
        [layer for layers in models.values() for layer in layers],
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


def heads_table(models: LayersByRole) -> Table:
    """List the attention rank of every head."""
    columns = [
        Column("model"),
        Column("layer", show=exact),
        Column("head", show=exact),
        Column("rank", show=formatted(".2f")),
    ]
    values = [
        [role, layer.index, head, rank]
        for role, layers in models.items()
        for layer in layers
        for head, rank in enumerate(layer.head_ranks)
    ]
    return Table("attention-heads", columns, values)
