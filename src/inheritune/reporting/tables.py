"""Make the tables of rounds, variants, seeds, cost and health."""

from collections.abc import Sequence
from typing import Any

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import (
    MISSING,
    amount,
    duration,
    exact,
    flops,
    hours,
    loss,
    money,
    signed,
)
from inheritune.reporting.record import Record, benchmark_of, number, rows, section, text
from inheritune.reporting.table import Column, Table

__all__ = [
    "curves_table",
    "health_table",
    "ledger_table",
    "rounds_table",
    "seeds_table",
    "variants_table",
]

_OUTCOMES = {
    "matched": "matched",
    "matched_within_noise": "matched within noise",
    "not_matched": "not matched",
}
_STARTS = {
    "trained": "trained reference",
    "inherit": "first layers of the reference",
    "fresh": "fresh weights",
}


def rounds_table(record: Record) -> Table:
    """One row per round of the target."""
    columns = [
        Column("round", show=exact),
        Column("layers", show=exact),
        Column("outcome"),
        Column("val_loss", "nats", loss),
        Column("SE", show=loss),
        Column("minus benchmark", "nats", signed),
        Column("paired SE", show=loss),
        Column("val_loss at start", "nats", loss),
        Column("tokens", show=amount),
        Column("epochs", show=_epochs),
        Column("parameters", show=amount),
        Column("FLOPs", show=flops),
        Column("time", "s", duration, True),
    ]
    losses = ("val_loss", "val_loss_se", "difference", "difference_se", "start_val_loss")
    keys = (*losses, "tokens", "epochs", "params", "flops", "seconds")
    values = [
        [
            number(row, "round"),
            number(row, "layers"),
            _OUTCOMES.get(text(row, "outcome"), text(row, "outcome") or None),
            *(number(row, key) for key in keys),
        ]
        for row in rows(record, "rounds")
    ]
    notes = [
        "SE: standard error over validation windows. The difference is taken window by window, so "
        "its own (paired) SE is the one that decides. Every round counts as cost."
    ]
    return Table("rounds", columns, values, notes if values else [])


def variants_table(record: Record) -> Table:
    """One row per model that was compared, the reference first."""
    columns = [
        Column("variant"),
        Column("start"),
        Column("layers", show=exact),
        Column("val_loss", "nats", loss),
        Column("SE over windows", show=loss),
        Column("minus benchmark", "nats", signed),
        Column("SD over seeds", show=loss),
        Column("seeds", show=exact),
        Column("tokens", show=amount),
        Column("parameters", show=amount),
        Column("FLOPs", show=flops),
        Column("time", "s", duration, True),
    ]
    benchmark = benchmark_of(record)
    values = []
    for row in sorted(rows(record, "variants"), key=lambda row: row.get("start") != "trained"):
        reached = number(row, "val_loss")
        apart = None if reached is None or benchmark is None else reached - benchmark
        values.append(
            [
                text(row, "name") or None,
                _start(row),
                number(row, "layers"),
                reached,
                number(row, "val_loss_se"),
                apart if row.get("start") != "trained" else None,
                number(row, "val_loss_sd"),
                number(row, "num_seeds"),
                *(number(row, key) for key in ("tokens", "params", "flops", "seconds")),
            ]
        )
    notes = ["All variants share data order and validation text. Tokens count repeats."]
    if any((number(row, "num_seeds") or 1) > 1 for row in rows(record, "variants")):
        notes.append(
            "val_loss is the mean over seeds, SD the sample standard deviation over them (tables/"
            "seeds has each); cost is that of one training on average. With one seed, SE over "
            "windows says nothing about other seeds."
        )
    if any(row.get("start") == "stacking" for row in rows(record, "variants")):
        notes.append("Stacking is two trainings, a row each: its cost is their sum.")
    return Table("variants", columns, values, notes if values else [])


def seeds_table(record: Record) -> Table:
    """One row per training that is compared, where there are several seeds."""
    columns = [
        Column("variant"),
        Column("layers", show=exact),
        Column("seed", show=exact),
        Column("val_loss", "nats", loss),
        Column("SE over windows", show=loss),
        Column("minus benchmark", "nats", signed),
        Column("paired SE", show=loss),
        Column("tokens", show=amount),
        Column("time", "s", duration, True),
    ]
    keys = ("seed", "val_loss", "val_loss_se", "difference", "difference_se", "tokens", "seconds")
    compared = rows(record, "variants")
    several = any((number(row, "num_seeds") or 1) > 1 for row in compared)
    values = [
        [text(row, "name") or None, number(row, "layers"), *(number(seed, key) for key in keys)]
        for row in compared
        for seed in (rows(row, "seeds") if several else [])
    ]
    return Table("seeds", columns, values)


def ledger_table(record: Record) -> Table:
    """Everything that was spent, and what was borrowed, with sums."""
    columns = [
        Column("item"),
        Column("tokens", show=amount),
        Column("FLOPs", show=flops),
        Column("time", "s", duration, True),
        Column("device-hours", show=hours),
    ]
    keys = ["tokens", "flops", "seconds", "device_hours"]
    items = rows(record, "ledger")
    if any(number(row, "price") is not None for row in items):
        currency = text(section(section(record, "recipe"), "cost"), "currency")
        columns.append(Column("price", currency[:10], money))
        keys.append("price")
    columns.append(Column("paid"))
    values: list[list[Any]] = [
        [
            text(row, "item") or None,
            *(number(row, key) for key in keys),
            "borrowed" if row.get("borrowed") else "here",
        ]
        for row in items
    ]
    notes = []
    if items:
        here = [row for row in items if not row.get("borrowed")]
        values.append(["sum of what was spent here", *(_total(here, key) for key in keys), "here"])
        if len(here) < len(items):
            both = [_total(items, key) for key in keys]
            values.append(["sum with what was borrowed", *both, "here and borrowed"])
        notes.append(
            "FLOPs per training token = 6 × (parameters − input embedding) + causal attention; "
            "one third for evaluation. Time is the machine's; device-hours are it times the "
            "processes, each with a device (on a CPU: the machine itself). Borrowed: paid by "
            "whoever made it. Looking at attention, asking tasks and writing samples are not in it."
        )
        notes += [f"{text(row, 'item')}: {text(row, 'note')}." for row in items if row.get("note")]
        if any(number(row, key) is None for row in items for key in keys[:3]):
            notes.append("Entries without a figure are not in the sums, which are then too low.")
    return Table("ledger", columns, values, notes)


def health_table(curves: Sequence[Curve]) -> Table:
    """One row per training: did it run clean."""
    columns = [
        Column("training"),
        Column("steps", show=exact),
        Column("validations", show=exact),
        Column("non-finite steps", show=exact),
        Column("of them skipped", show=exact),
        Column("spikes", show=exact),
        Column("restarts", show=exact),
        Column("passes over the text", show=_epochs),
        Column("highest gradient norm", show=_norm),
    ]
    values = [
        [
            curve.label,
            curve.health.steps,
            curve.health.validations,
            curve.health.nonfinite,
            curve.health.skipped,
            curve.health.spikes,
            curve.health.restarts,
            curve.health.epochs,
            curve.health.highest_grad_norm,
        ]
        for curve in curves
    ]
    notes = [
        "Spikes: steps whose loss lay more than 6 standard deviations above the 128 before. "
        "Passes over 1 repeat text. Restarts: continued from a checkpoint."
    ]
    return Table("health", columns, values, notes if values else [])


def curves_table(curves: Sequence[Curve], name: str = "curves") -> Table:
    """Every validation of every training."""
    columns = [
        Column("training"),
        Column("tokens of this training", show=exact),
        Column("tokens with earlier rounds", show=exact),
        Column("val_loss", "nats", loss),
    ]
    values = [
        [curve.label, tokens, tokens + curve.offset, val_loss]
        for curve in curves
        for tokens, val_loss in curve.points
    ]
    return Table(name, columns, values)


def _start(row: Record) -> str | None:
    start = text(row, "made_of") or _STARTS.get(text(row, "start"), text(row, "start") or None)
    return f"{start}, distilled" if start and row.get("distill") else start


def _total(items: list[dict[str, Any]], key: str) -> float | None:
    known = [value for row in items if (value := number(row, key)) is not None]
    return sum(known) if known else None


def _epochs(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _norm(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"
