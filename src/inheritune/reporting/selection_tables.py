"""Make the tables of how layers were chosen: what each layer is worth, and what each cut costs."""

from inheritune.model_files.layers import ranges
from inheritune.reporting.block_charts import block_charts
from inheritune.reporting.quantities import amount, exact, formatted, loss
from inheritune.reporting.section import Chart, PageSection
from inheritune.reporting.table import Column, Field, Table
from inheritune.run_record.measurements import (
    CandidateRecord,
    InheritedRecord,
    LayerScoreRecord,
    SelectionRecord,
    TournamentRecord,
)
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel

_BAR = 20  # blocks of the longest bar


def selection_section(record: RunRecord) -> PageSection | None:
    """The page's section on what was inherited; None where nothing is known of it untrained."""
    selection, tournament = record.selection, record.tournament
    title, sentences, charts = "Before any training", list[str](), list[Chart]()
    tables = [zero_token_table(record)]
    if selection is not None and selection.layers:
        title, text = "Choice of layers", selection.text
        sentences.append(
            f"Scores on {text.sequences} windows of {text.tokens_per_sequence} tokens of the "
            "training text; the validation text has no part in them. All scores: selection.json."
        )
        charts = block_charts(selection)
        tables = [inherited_table(selection), *tables, removal_table(selection)]
    if tournament is not None and tournament.stages:
        title = "Choice of layers"
        tables.insert(0, tournament_table(tournament))
    tables = [table for table in tables if table.values]
    if not tables:
        return None
    return PageSection("selection", title, sentences, charts, tables, folded=True)


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


def tournament_table(tournament: TournamentRecord) -> Table:
    """Make a table of the candidates of each stage, the best first."""
    rows = [
        (number, stage, candidate)
        for number, stage in enumerate(tournament.stages, 1)
        for candidate in stage.candidates
    ]
    nats = formatted(".4f")
    notes = [
        f"Compared by {tournament.by} on {tournament.windows} windows of the training text that no "
        "candidate was trained on. The better half of a stage goes on, with twice the tokens, from "
        "its cut again."
    ]
    return Table.of(
        "tournament",
        rows,
        [
            (Column("stage", show=exact), lambda row: row[0]),
            (Column("candidate"), lambda row: row[2].select),
            (Column("inherited"), lambda row: _kept(row[2])),
            (Column("tokens", show=amount), lambda row: row[1].tokens),
            (Column("KL", "nats/token", nats), lambda row: row[2].kl),
            (Column("loss", "nats/token", nats), lambda row: row[2].val_loss),
            (Column("goes on"), lambda row: _goes_on(row[2])),
        ],
        notes,
        "Tournament",
    )


def removal_table(selection: SelectionRecord) -> Table:
    """Make a table of each layer, and of what leaving it out costs where that was measured."""
    is_removed = any(row.kl is not None for row in selection.layers)
    most = max((row.kl for row in selection.layers if row.kl is not None), default=0) or 1

    def bar(row: LayerScoreRecord) -> str:
        return "" if row.kl is None else "█" * round(_BAR * max(row.kl, 0) / most)

    removals: list[Field] = [
        (Column("KL without it", "nats/token", formatted(".4f")), "kl"),
        (Column(""), bar),
        (Column("loss without it", "nats/token", formatted("+.4f")), "loss"),
    ]
    return Table.of(
        "removal-of-layers",
        selection.layers,
        [
            (Column("layer", show=exact), "layer"),
            *(removals if is_removed else []),
            (Column("influence", show=formatted(".3f")), "influence"),
            (Column("norm ratio", show=formatted(".3f")), "norm_ratio"),
        ],
    )


def _kept(row: InheritedRecord | CandidateRecord) -> str:
    return ", ".join(ranges([int(layer) for layer in row.kept]))


def _goes_on(row: CandidateRecord) -> str:
    if row.val_loss is None:
        return "no, it diverged"
    return "yes" if row.goes_on else "no"
