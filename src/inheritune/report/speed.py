"""How fast trainings ran: tokens and operations per second, share of the device's peak, memory."""

from collections.abc import Sequence

from inheritune.inherit.devices import DEVICES
from inheritune.report.curves import Curve
from inheritune.report.quantities import data_size, exact, flops, percent
from inheritune.report.record import Record, number, section, text
from inheritune.report.tables import Column, Table

__all__ = ["peak_flops", "speed_table"]


def speed_table(record: Record, curves: Sequence[Curve]) -> Table:
    """One row per training; model FLOPs utilization where the device's peak is known."""
    columns = [
        Column("training"),
        Column("median speed", "tokens/s", exact),
        Column("model FLOPs", "per s", flops),
        Column("MFU", show=percent),
        Column("peak memory", "bytes", data_size, True),
    ]
    peak, values = peak_flops(record), []
    for curve in curves:
        speed, each = curve.health.median_speed, curve.flops_per_token
        rate = None if speed is None or each is None else speed * each
        share = None if rate is None or peak is None else rate / peak
        values.append([curve.label, speed, rate, share, curve.health.peak_memory])
    notes = ["Median over steps; model FLOPs are those of the ledger, nothing recomputed."]
    if peak is None:
        notes.append("MFU needs the peak of the device, which is not recorded for this machine.")
    else:
        notes.append(f"MFU: share of {flops(peak)} dense FLOPs per second of all devices together.")
    return Table("speed-and-memory", columns, values, notes if values else [])


def peak_flops(record: Record) -> float | None:
    """Of all devices of the run together, by the name the record gives; None: not known."""
    settings = section(record, "settings")
    name = text(settings, "device_name") or text(section(record, "machine"), "device_name")
    found = _peak_of(name, text(settings, "precision"))
    return None if found is None else found * (number(settings, "processes") or 1)


def _peak_of(name: str, precision: str) -> float | None:
    words = set(name.lower().replace("-", " ").split())
    fitting = [
        device
        for device in DEVICES.values()
        if device.name.removeprefix("rtx").split("-")[0] in words and device.precision == precision
    ]
    # "NVIDIA H100 PCIe" has the model in common with the H100 SXM, and one word more with its own.
    best = max(
        fitting, key=lambda device: len(words & set(device.title.lower().split())), default=None
    )
    return None if best is None else best.peak_flops
