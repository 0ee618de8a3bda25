"""Make the tables of a run's record: rounds, variants, seeds and the ledger of costs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from inheritune.reporting.fidelity_columns import (
    NOTE,
    fidelity_fields,
    fidelity_marks,
    has_fidelity,
)
from inheritune.reporting.quantities import (
    amount,
    duration,
    epochs,
    exact,
    flops,
    hours,
    loss,
    money,
    signed,
)
from inheritune.reporting.table import Column, Field, Table
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import LedgerEntry, TrainedModel

_OUTCOMES = {
    "matched": "matched",
    "matched_within_noise": "matched within noise",
    "not_matched": "not matched",
}
_MOST_ROWS = 8  # of the results that a page shows unfolded
_STARTS = {
    "trained": "trained reference",
    "inherit": "first layers of the reference",
    "fresh": "fresh weights",
}


def summary_table(record: RunRecord) -> Table:
    """List reference, rounds and controls; narrow enough for a terminal of 80 columns."""
    several = _has_several_seeds(record)
    rows = record.variants[:1]
    rows += [_renamed(row, f"{row.name}, round {row.round}") for row in record.rounds]
    for row in record.variants[1:]:
        if row.name != record.target.name:
            rows.append(row)
        elif (row.num_seeds or 1) > 1:
            rows.append(_renamed(row, f"{row.name}, all seeds"))
    is_wide = several or has_fidelity(rows)
    return Table.of(
        "summary",
        rows,
        [
            (Column(""), "name"),
            (Column("layers", show=exact), "layers"),
            (Column("size", show=amount), "params"),
            (Column("val_loss", show=loss), "val_loss"),
            *([(Column("sd (seeds)", show=str), _seed_spread)] if several else []),
            (Column(f"vs {'ref.' if is_wide else 'reference'}", show=signed), "difference"),
            *fidelity_fields(rows, short=True),
            (Column("tokens", show=amount), "tokens"),
            (Column("time", show=duration), "seconds"),
        ],
    )


def _renamed(row: TrainedModel, name: str) -> TrainedModel:
    return row.model_copy(update={"name": name})


def rounds_table(record: RunRecord) -> Table:
    """List the rounds of the target."""
    before: list[Field] = [
        (Column("round", show=exact), "round"),
        (Column("layers", show=exact), "layers"),
        (Column("outcome"), lambda row: _OUTCOMES.get(row.outcome, row.outcome or None)),
        (Column("val_loss", "nats", loss), "val_loss"),
        (Column("SE", show=loss), "val_loss_se"),
        (Column("minus reference loss", "nats", signed), "difference"),
        (Column("paired SE", show=loss), "difference_se"),
    ]
    table = Table.of(
        "rounds",
        record.rounds,
        [
            *before,
            *fidelity_fields(record.rounds),
            *_cut_column(record.rounds),
            (Column("val_loss at start", "nats", loss), "start_val_loss"),
            (Column("tokens", show=amount), "tokens"),
            (Column("epochs", show=epochs), "epochs"),
            (Column("parameters", show=amount), "params"),
            (Column("FLOPs in all", show=flops), "flops"),
            (Column("time", "s", duration, True), "seconds"),
        ],
        [
            "SE: standard error over validation windows. The difference is taken window by window, "
            "so its own (paired) SE decides. Every round counts towards the cost.",
            *_fidelity_note(record.rounds),
        ],
    )
    return replace(table, marks=fidelity_marks(record.rounds, len(before)))


def _fidelity_note(rows: Sequence[TrainedModel]) -> list[str]:
    return [NOTE] if has_fidelity(rows) else []


def _cut_column(rows: Sequence[TrainedModel]) -> list[Field]:
    """The column of cuts before their repair, where there is any."""
    if all(row.cut_val_loss is None for row in rows):
        return []
    return [(Column("val_loss of the cut", "nats", loss), "cut_val_loss")]


def variants_table(record: RunRecord) -> Table:
    """List the models that were compared, by loss, the lowest first."""
    notes = [
        "All variants share data order and validation text. Tokens include repeats. FLOPs in all "
        "count validations and forward passes of the reference, too."
    ]
    if _has_several_seeds(record):
        notes.append(
            "val_loss is the mean over seeds, SD the sample standard deviation over them (tables/"
            "seeds lists each); cost is the average of one training. With one seed, SE over "
            "windows says nothing about other seeds."
        )
    if any(row.start == "stacking" for row in record.variants):
        notes.append("Stacking is two trainings, one row each: its cost is their sum.")
    zero_tokens = _cut_column(record.variants)
    if zero_tokens:
        notes.append(
            "val_loss of the cut: the inherited layers as they are; val_loss at start: after their "
            "repair. Both come before any training."
        )
        zero_tokens.append((Column("val_loss at start", "nats", loss), "start_val_loss"))
    over_seeds: list[Field] = [
        (Column("SD over seeds", show=loss), "val_loss_sd"),
        (Column("seeds", show=exact), "num_seeds"),
    ]
    rows = sorted(record.variants, key=lambda row: (row.val_loss is None, row.val_loss or 0.0))
    before: list[Field] = [
        (Column("variant"), lambda row: row.name or None),
        (Column("val_loss", "nats", loss), "val_loss"),
        (
            Column("minus reference loss", "nats", signed),
            lambda row: _minus_reference(record, row),
        ),
        (Column("SE over windows", show=loss), "val_loss_se"),
        *(over_seeds if _has_several_seeds(record) else []),
    ]
    table = Table.of(
        "variants",
        rows,
        [
            *before,
            *fidelity_fields(rows),
            *zero_tokens,
            (Column("layers", show=exact), "layers"),
            (Column("parameters", show=amount), "params"),
            (Column("tokens", show=amount), "tokens"),
            (Column("FLOPs in all", show=flops), "flops"),
            (Column("time", "s", duration, True), "seconds"),
            (Column("start"), _start),
        ],
        [*notes, *_fidelity_note(rows)],
    )
    return replace(table, marks=fidelity_marks(rows, len(before)))


def leading_rows(record: RunRecord, table: Table) -> list[int]:
    """List the rows of the table of variants to show first; a reader can unfold the others.

    Returns:
        Indices, in order: the reference, the target, its scratch control and every variant that
        beats the target; then those of the lowest losses, up to eight in all.
    """
    named = {"reference", record.target_name, record.fresh_control.name}
    level = record.target_row.val_loss or record.target_loss
    must = {
        index
        for index, (name, val_loss, *_) in enumerate(table.values)
        if name in named or (None not in (level, val_loss) and val_loss < level)
    }
    others = [index for index in range(len(table.values)) if index not in must]
    return sorted([*must, *others[: max(0, _MOST_ROWS - len(must))]])


def seeds_table(record: RunRecord) -> Table:
    """List the trainings of all seeds; empty where every variant has one seed."""
    several = _has_several_seeds(record)
    return Table.of(
        "seeds",
        [(row, seed) for row in record.variants for seed in (row.seeds if several else [])],
        [
            (Column("variant"), lambda pair: pair[0].name or None),
            (Column("layers", show=exact), lambda pair: pair[0].layers),
            (Column("seed", show=exact), lambda pair: pair[1].seed),
            (Column("val_loss", "nats", loss), lambda pair: pair[1].val_loss),
            (Column("SE over windows", show=loss), lambda pair: pair[1].val_loss_se),
            (Column("minus reference loss", "nats", signed), lambda pair: pair[1].difference),
            (Column("paired SE", show=loss), lambda pair: pair[1].difference_se),
            *_of_second(fidelity_fields([s for row in record.variants for s in row.seeds])),
            (Column("tokens", show=amount), lambda pair: pair[1].tokens),
            (Column("time", "s", duration, True), lambda pair: pair[1].seconds),
        ],
    )


def _of_second(fields: Sequence[Field]) -> list[Field]:
    return [(column, _getter_of_second(value)) for column, value in fields]


def _getter_of_second(getter: Any) -> Callable[[Any], Any]:
    return lambda pair: getter(pair[1])


def ledger_table(record: RunRecord) -> Table:
    """List every cost, whether paid here or borrowed, with sums."""
    columns = [
        Column("item"),
        Column("tokens", show=amount),
        Column("FLOPs", show=flops),
        Column("time", "s", duration, True),
        Column("device-hours", show=hours),
    ]
    keys = ["tokens", "flops", "seconds", "device_hours"]
    entries = record.ledger
    if any(entry.price is not None for entry in entries):
        columns.append(Column("price", record.currency, money))
        keys.append("price")
    columns.append(Column("paid"))
    values = [
        [
            _item(entry),
            *(getattr(entry, key) for key in keys),
            "borrowed" if entry.borrowed else "here",
        ]
        for entry in entries
    ]
    if not entries:
        return Table("ledger", columns, values)
    paid = record.paid_entries
    values.append(["sum of what was spent here", *(_total(paid, key) for key in keys), "here"])
    if len(paid) < len(entries):
        sums = [_total(entries, key) for key in keys]
        values.append(["sum with what was borrowed", *sums, "here and borrowed"])
    notes = [
        "FLOPs per training token = 6 × (parameters − input embedding) + causal attention; a third "
        "of that for evaluation. Time is wall-clock time; device-hours are time multiplied by the "
        "processes, each with its own device (on a CPU: the machine). Borrowed: paid outside this "
        "run. Attention analysis, tasks and samples are not included."
    ]
    notes += [f"{_item(entry)}: {entry.note}." for entry in entries if entry.note]
    if any(getattr(entry, key) is None for entry in entries for key in keys[:3]):
        notes.append("Entries without a figure are missing from the sums, which are then too low.")
    return Table("ledger", columns, values, notes)


def _start(row: TrainedModel) -> str | None:
    start = row.made_of or _STARTS.get(row.start or "", row.start or None)
    return f"{start}, distilled" if start and row.distill else start


def _minus_reference(record: RunRecord, row: TrainedModel) -> float | None:
    if row.start == "trained" or row.val_loss is None or record.reference_loss is None:
        return None
    return row.val_loss - record.reference_loss


def _has_several_seeds(record: RunRecord) -> bool:
    return any((row.num_seeds or 1) > 1 for row in record.variants)


def _seed_spread(row: TrainedModel) -> str:
    count = row.num_seeds or 1
    return "1 seed" if count == 1 else f"{loss(row.val_loss_sd)} ({count})"


def _item(entry: LedgerEntry) -> str | None:
    # The record keeps the word of the recipe key.
    return "reference loss" if entry.item == "benchmark" else entry.item or None


def _total(entries: Sequence[LedgerEntry], key: str) -> float | None:
    values = [value for entry in entries if (value := getattr(entry, key)) is not None]
    return sum(values) if values else None
