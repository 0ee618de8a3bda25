"""Make the tables of how layers were chosen: what each layer is worth, and what each cut costs."""

from inheritune.model_files.layers import ranges
from inheritune.reporting.quantities import exact, formatted
from inheritune.reporting.section import PageSection
from inheritune.reporting.table import Column, Table
from inheritune.run_record.measurements import InheritedRecord, LayerScoreRecord, SelectionRecord
from inheritune.run_record.record import RunRecord

_BAR = 20  # blocks of the longest bar


def selection_section(record: RunRecord) -> PageSection | None:
    """The page's section on the choice of layers; None where none were chosen by scores."""
    selection = record.selection
    if selection is None or not selection.layers:
        return None
    text = selection.text
    sentence = (
        f"Scores on {text.sequences} windows of {text.tokens_per_sequence} tokens of the training "
        "text; the validation text has no part in them. All scores: selection.json."
    )
    tables = [inherited_table(selection), removal_table(selection)]
    return PageSection("selection", "Choice of layers", [sentence], tables=tables, folded=True)


def inherited_table(selection: SelectionRecord) -> Table:
    """Make a table of the models that inherit layers: what each cut costs before any training."""
    loss = formatted(".4f")
    return Table.of(
        "inherited-layers",
        selection.inherited,
        [
            (Column("model"), "name"),
            (Column("select"), "select"),
            (Column("layers", show=exact), "layers"),
            (Column("inherited"), _kept),
            (Column("KL of the cut", "nats/token", loss), "kl"),
            (Column("val_loss at zero tokens", "nats/token", loss), "start_val_loss"),
            (Column("val_loss trained", "nats/token", loss), "val_loss"),
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
