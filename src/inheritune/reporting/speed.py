"""How fast trainings ran: tokens and operations per second, share of the device's peak, memory."""

from collections.abc import Sequence

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import data_size, exact, flops, percent
from inheritune.reporting.tables import Column, Table

__all__ = ["speed_table"]


def speed_table(curves: Sequence[Curve]) -> Table:
    """One row per training; model FLOPs utilization where the device's peak is known."""
    columns = [
        Column("training"),
        Column("median speed", "tokens/s", exact),
        Column("model FLOPs", "per s", flops),
        Column("MFU", show=percent),
        Column("peak memory", "bytes", data_size, True),
    ]
    values = []
    for curve in curves:
        speed, each = curve.health.median_speed, curve.flops_per_token
        rate = None if speed is None or each is None else speed * each
        health = curve.health
        values.append([curve.label, speed, rate, health.median_mfu, health.peak_memory])
    notes = ["Median over steps; model FLOPs are those of the ledger, nothing recomputed."]
    if any(curve.health.median_mfu is None for curve in curves):
        notes.append("MFU needs the peak of the device, which is not known everywhere.")
    return Table("speed-and-memory", columns, values, notes if values else [])
