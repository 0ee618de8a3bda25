"""Summarize the trainings that are still running: tokens done, current loss, speed, time left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, duration, exact, loss, percent
from inheritune.run_record.record import RunRecord

_RECENT_STEPS = 20


@dataclass(frozen=True)
class TrainingProgress:
    """One training that has not ended."""

    label: str  # name, round and layers
    # Share of its tokens that is done, in [0, 1]; None when their number is not known.
    share: float | None
    lines: list[str]  # what it has reached, as phrases without a full stop


def trainings_in_progress(record: RunRecord, curves: Sequence[Curve]) -> list[TrainingProgress]:
    """List the trainings that have begun and are not recorded as ended; none after the result."""
    if record.result:
        return []
    return [_progress(record, c) for c in curves if not c.recorded and c.has_begun]


def _progress(record: RunRecord, curve: Curve) -> TrainingProgress:
    course = curve.course
    done = course.tokens[-1] if course.tokens else float(curve.points[-1][0])
    planned = record.planned_tokens(curve.variant)
    share = None if not planned else min(1.0, done / planned)
    line = f"{amount(done)} tokens"
    if planned and share is not None:
        line = f"{amount(done)} of {amount(planned)} tokens ({percent(share)})"
    lines = [line]
    if course.steps:
        recent_loss = loss(_recent_mean(course.losses))
        lines.append(f"step {exact(course.steps[-1])}, training loss {recent_loss}")
    if curve.points:
        level = record.reference_loss
        beside = "" if level is None else f", reference loss {loss(level)}"
        lines.append(f"val_loss {loss(curve.points[-1][1])}{beside}")
    speed = _recent_mean(course.speeds)
    if speed:
        left = ""
        if record.status == "running" and planned is not None:
            left = f", {duration(max(0.0, planned - done) / speed)} left"
        lines.append(f"{exact(speed)} tokens/s{left}")
    return TrainingProgress(curve.label, share, lines)


def _recent_mean(values: Sequence[float]) -> float | None:
    recent = [value for value in values[-_RECENT_STEPS:] if math.isfinite(value)]
    return sum(recent) / len(recent) if recent else None
