"""Where a run that has not ended stands: what each of its trainings has done and has left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, duration, exact, loss, percent
from inheritune.reporting.record import Record, benchmark_of, number, section

__all__ = ["Standing", "standing"]

_RECENT = 20  # steps


@dataclass(frozen=True)
class Standing:
    """One training that has not ended.

    Attributes:
        label: Name, round and layers.
        share: Of its tokens that it has done, in [0, 1]; None when their number is not known.
        lines: What it has reached, as sentences without a full stop.
    """

    label: str
    share: float | None
    lines: list[str]


def standing(record: Record, curves: Sequence[Curve]) -> list[Standing]:
    """Every training that has begun and is not recorded as ended; none once there is a result."""
    if section(record, "result"):
        return []
    begun = [c for c in curves if not c.recorded and (c.points or c.course.steps)]
    return [_standing(record, curve) for curve in begun]


def _standing(record: Record, curve: Curve) -> Standing:
    course = curve.course
    done = course.tokens[-1] if course.tokens else float(curve.points[-1][0])
    planned = _planned(record, curve)
    share = None if not planned else min(1.0, done / planned)
    of = f" of {amount(planned)}" if planned else ""
    part = "" if share is None else f" ({percent(share)})"
    lines = [f"{amount(done)}{of} tokens{part}"]
    if course.steps:
        lines.append(f"step {exact(course.steps[-1])}, training loss {loss(_mean(course.losses))}")
    if curve.points:
        against = benchmark_of(record)
        beside = "" if against is None else f" against the benchmark {loss(against)}"
        lines.append(f"val_loss {loss(curve.points[-1][1])}{beside}")
    speed = _mean(course.speeds)
    if speed:
        left = None if planned is None else max(0.0, planned - done) / speed
        lines.append(
            f"{exact(speed)} tokens/s" + ("" if left is None else f", {duration(left)} left")
        )
    return Standing(curve.label, share, lines)


def _planned(record: Record, curve: Curve) -> float | None:
    recipe = section(record, "recipe")
    own = number(section(section(recipe, "variants"), curve.variant), "tokens")
    if own is not None:
        return own
    if section(section(recipe, "variants"), curve.variant).get("tokens") is not None:
        return None  # such as equal_compute: known only when it begins
    return number(section(recipe, "train"), "tokens")


def _mean(values: Sequence[float]) -> float | None:
    recent = [value for value in values[-_RECENT:] if math.isfinite(value)]
    return sum(recent) / len(recent) if recent else None
