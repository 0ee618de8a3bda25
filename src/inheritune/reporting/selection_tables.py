"""Make the tables of how layers were chosen: what each layer is worth, and what each cut costs."""

from inheritune.model_files.layers import ranges
from inheritune.reporting.block_charts import block_charts
from inheritune.reporting.quantities import amount, exact, formatted, loss
from inheritune.reporting.section import PageSection
from inheritune.reporting.table import Column, Field, Table
from inheritune.run_record.measurements import InheritedRecord, LayerScoreRecord, SelectionRecord
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel

_BAR = 20  # blocks of the longest bar


def selection_section(record: RunRecord) -> PageSection | None:
    """The page's section on what was inherited; None where nothing is known of it untrained."""
    selection = record.selection
    untrained = zero_token_table(record)
    if selection is None or not selection.layers:
        if not untrained.values:
            return None
        return PageSection("selection", "Before any training", tables=[untrained], folded=True)
    text = selection.text
    sentence = (
        f"Scores on {text.sequences} windows of {text.tokens_per_sequence} tokens of the training "
        "text; the validation text has no part in them. All scores: selection.json."
    )
    tables = [inherited_table(selection), untrained, removal_table(selection)]
    return PageSection(
        "selection",
        "Choice of layers",
        [sentence],
        block_charts(selection),
        [table for table in tables if table.values],
        folded=True,
    )


def zero_token_table(record: RunRecord) -> Table:
    """Make a table of what inherited layers are worth before a token of training."""
    rows = [*record.rounds, *(row for row in record.variants if row.name != record.target_name)]
    inherited = [row for row in rows if row.start == "inherit" and row.start_val_loss is not None]
    is_repaired = any(row.cut_val_loss is not None for row in inherited)
    repaired: list[Field] = [
        (Column("cut and repaired, at zero tokens", "nats", loss), _repaired_loss)
    ]
    return Table.of(
        "zero-tokens",
        inherited,
        [
            (Column("model"), "name"),
            (Column("layers", show=exact), "layers"),
            (Column("cut, at zero tokens", "nats", loss), _cut_loss),
            *(repaired if is_repaired else []),
            (Column("trained", "nats", loss), "val_loss"),
            (Column("tokens", show=amount), "tokens"),
        ],
        ["val_loss on the validation windows, before the first step and after the last."],
    )


def _cut_loss(row: TrainedModel) -> float | None:
    return row.start_val_loss if row.cut_val_loss is None else row.cut_val_loss


def _repaired_loss(row: TrainedModel) -> float | None:
    return None if row.cut_val_loss is None else row.start_val_loss


def inherited_table(selection: SelectionRecord) -> Table:
    """Make a table of the models that inherit layers: what each cut costs before any training."""
    nats = formatted(".4f")
    return Table.of(
        "inherited-layers",
        selection.inherited,
        [
            (Column("model"), "name"),
            (Column("select"), "select"),
            (Column("layers", show=exact), "layers"),
            (Column("inherited"), _kept),
            (Column("KL of the cut", "nats/token", nats), "kl"),
            (Column("val_loss at zero tokens", "nats/token", nats), "start_val_loss"),
            (Column("val_loss trained", "nats/token", nats), "val_loss"),
        ],
    )


def removal_table(selection: SelectionRecord) -> Table:
    """Make a table of what leaving out each single layer costs, with a bar."""
    most = max((row.kl for row in selection.layers if row.kl is not None), default=0) or 1

    def bar(row: LayerScoreRecord) -> str:
        return "" if row.kl is None else "█" * round(_BAR * max(row.kl, 0) / most)

    return Table.of(
        "removal-of-layers",
        selection.layers,
        [
            (Column("layer", show=exact), "layer"),
            (Column("KL without it", "nats/token", formatted(".4f")), "kl"),
            (Column(""), bar),
            (Column("loss without it", "nats/token", formatted("+.4f")), "loss"),
            (Column("influence", show=formatted(".3f")), "influence"),
            (Column("norm ratio", show=formatted(".3f")), "norm_ratio"),
        ],
    )


def _kept(row: InheritedRecord) -> str:
    return ", ".join(ranges([int(layer) for layer in row.kept]))
