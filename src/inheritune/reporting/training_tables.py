"""Make the tables of a run's trainings: curves, health, speed, and tokens to reach a loss."""

from collections.abc import Sequence

from inheritune.reporting.curves import Curve, reference_points
from inheritune.reporting.quantities import (
    amount,
    data_size,
    epochs,
    exact,
    flops,
    formatted,
    loss,
    percent,
)
from inheritune.reporting.series import Line, val_lines, value_of
from inheritune.reporting.styles import TARGET
from inheritune.reporting.table import Column, Table
from inheritune.run_record.record import RunRecord

_MAX_LEVELS = 8
_MAX_VARIANTS = 8


def curves_table(curves: Sequence[Curve]) -> Table:
    """List every validation of every training."""
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
    return Table("curves", columns, values)


def health_table(curves: Sequence[Curve]) -> Table:
    """List steps, spikes, restarts and other signs of trouble of each training."""
    return Table.of(
        "health",
        curves,
        [
            (Column("training"), "label"),
            (Column("steps", show=exact), "health.steps"),
            (Column("validations", show=exact), "health.validations"),
            (Column("non-finite steps", show=exact), "health.nonfinite"),
            (Column("of them skipped", show=exact), "health.skipped"),
            (Column("spikes", show=exact), "health.spikes"),
            (Column("restarts", show=exact), "health.restarts"),
            (Column("passes over the text", show=epochs), "health.epochs"),
            (Column("highest gradient norm", show=formatted(".3g")), "health.highest_grad_norm"),
        ],
        [
            "Spikes: steps with a loss more than 6 standard deviations above the 128 before. More "
            "than one pass repeats text. Restarts: the training was continued from a checkpoint."
        ],
    )


def speed_table(curves: Sequence[Curve]) -> Table:
    """List speed, memory and, where known, model FLOPs utilization of each training."""
    notes = ["Medians over steps. Model FLOPs are counted as in the ledger, without recomputation."]
    if any(curve.health.median_mfu is None for curve in curves):
        notes.append("MFU needs the device's peak, which is not known for every device.")
    measured = [c for c in curves if c.health.median_speed or c.health.peak_memory]
    return Table.of(
        "speed-and-memory",
        measured,
        [
            (Column("training"), "label"),
            (Column("median speed", "tokens/s", exact), "health.median_speed"),
            (Column("model FLOPs", "per s", flops), _flops_per_second),
            (Column("MFU", show=percent), "health.median_mfu"),
            (Column("peak memory", "bytes", data_size, True), "health.peak_memory"),
        ],
        notes,
    )


def reach_table(record: RunRecord, curves: Sequence[Curve]) -> Table:
    """List the tokens until a validation was first at or below a loss; never extrapolated.

    Returns:
        A row per loss: the reference loss, and the lowest of each variant. A column per variant,
        all rounds of the target counted together; with several seeds, the first.
    """
    lines = val_lines(record, [c for c in curves if not c.is_repeat])[:_MAX_VARIANTS]
    own_points = reference_points(record)
    columns = [Column("loss of"), Column("val_loss", "nats", loss)]
    columns += [Column(line.name, "tokens", _tokens_or_not_reached, True) for line in lines]
    if own_points:
        title = "the reference's own training"
        columns.append(Column(title, "tokens", _tokens_or_not_reached, True))
    values = []
    for label, level in _levels(record, lines):
        row = [label, level, *(_tokens_to_reach(line, level) for line in lines)]
        if own_points:
            row.append(next((float(t) for t, value in own_points if value <= level), None))
        values.append(row)
    notes = [
        "Tokens at the first validation at or below the loss, earlier rounds included. Nothing is "
        "interpolated between validations, so a figure may be too high by one interval; 0: the "
        "training began there. Not reached: not in this run; nothing is extrapolated."
    ]
    if own_points:
        notes.append(
            "The reference's own training is as recorded then, perhaps on other validation text."
        )
    return Table("tokens-to-reach", columns, values, notes if values else [])


def _levels(record: RunRecord, lines: Sequence[Line]) -> list[tuple[str, float]]:
    """List label and value of the losses to look for, highest first; no two that read alike."""
    levels: dict[str, tuple[str, float]] = {}
    if record.reference_loss is not None:
        levels[loss(record.reference_loss)] = ("the reference loss", record.reference_loss)
    for line in lines:
        for number, part in enumerate(line.parts, 1):
            lowest = min(value_of(row) for row in part)
            kind = "round" if line.style is TARGET else "training"
            which = f", {kind} {number}" if len(line.parts) > 1 else ""
            levels.setdefault(loss(lowest), (f"{line.name}{which}", lowest))
    return sorted(levels.values(), key=lambda level: -level[1])[-_MAX_LEVELS:]


def _tokens_to_reach(line: Line, level: float) -> float | None:
    return next((row["tokens"] for row in line.rows if value_of(row) <= level), None)


def _tokens_or_not_reached(value: float | None) -> str:
    return "not reached" if value is None else amount(value)


def _flops_per_second(curve: Curve) -> float | None:
    if curve.health.median_speed is None or curve.flops_per_token is None:
        return None
    return curve.health.median_speed * curve.flops_per_token
