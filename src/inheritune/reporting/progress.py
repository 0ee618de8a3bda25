"""Say where a run stands: its stages, the trainings that go on, and the time that is left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, duration, exact, loss, percent, signed
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import StageRecord, work_to_come

_RECENT_STEPS = 20


@dataclass(frozen=True)
class StageState:
    """One stage of a run that has not ended."""

    name: str
    state: str  # `done`, `now` or `later`
    detail: str  # time that it took, or when it comes


@dataclass(frozen=True)
class TrainingProgress:
    """One training that has not ended."""

    label: str  # name, round and layers
    # Share of its tokens that is done, in [0, 1]; None when their number is not known.
    share: float | None
    lines: list[str]  # what it has reached, as phrases without a full stop


def stage_states(record: RunRecord) -> list[StageState]:
    """List the stages of a run that has no result yet; none where they are not recorded."""
    if record.result and record.status != "running":
        return []
    return [_state(record, stage) for stage in record.stages]


def trainings_in_progress(record: RunRecord, curves: Sequence[Curve]) -> list[TrainingProgress]:
    """List the trainings that have begun and are not recorded as ended; none after the result."""
    if record.result:
        return []
    ended = {_training(stage) for stage in record.stages if stage.seconds is not None}
    return [
        _progress(record, curve)
        for curve in curves
        if not curve.recorded and curve.has_begun and (curve.variant, curve.layers) not in ended
    ]


def planned_end(record: RunRecord, curves: Sequence[Curve]) -> float:
    """Return the tokens at which the trainings that go on will end; 0 where none is known."""
    if record.status != "running" or record.result:
        return 0.0
    ends = [curve.offset + (record.planned_tokens(curve.variant) or 0) for curve in curves]
    return max(ends, default=0.0)


def _training(stage: StageRecord) -> tuple[str | None, int | None]:
    return stage.variant, None if stage.layers is None else int(stage.layers)


def _state(record: RunRecord, stage: StageRecord) -> StageState:
    name = stage.name or "unnamed"
    if stage.seconds is not None:
        return StageState(name, "done", duration(stage.seconds))
    if stage.began_at:
        return StageState(name, "now", "now" if record.status == "running" else "interrupted")
    tokens = f"{amount(stage.tokens)} tokens" if stage.tokens else ""
    condition = "only if none before it matches" if stage.optional else ""
    return StageState(name, "later", ", ".join(filter(None, [tokens, condition])) or "to come")


def _progress(record: RunRecord, curve: Curve) -> TrainingProgress:
    course, level = curve.course, record.reference_loss
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
        val_loss = curve.points[-1][1]
        beside = "" if level is None else f" (reference {loss(level)}, {signed(val_loss - level)})"
        lines.append(f"val_loss {loss(val_loss)}{beside}")
    speed = _recent_mean(course.speeds)
    if speed:
        left = ""
        if record.status == "running" and planned is not None:
            left_s = max(0.0, planned - done) / speed
            left = f", {duration(left_s)} left{_run_left(record, curve, left_s, speed)}"
        lines.append(f"{exact(speed)} tokens/s{left}")
    return TrainingProgress(curve.label, share, lines)


def _run_left(record: RunRecord, curve: Curve, left_s: float, speed: float) -> str:
    """Estimate the time to the end of all trainings that are certain to come.

    Seconds of a training = tokens x layers / (tokens per second x layers of the one that goes on).
    """
    layers = curve.layers or 1
    work = work_to_come(record.stages, layers)
    if not record.stages:
        return ""
    return f"; all trainings done in about {duration(left_s + work / (speed * layers))}"


def _recent_mean(values: Sequence[float]) -> float | None:
    recent = [value for value in values[-_RECENT_STEPS:] if math.isfinite(value)]
    return sum(recent) / len(recent) if recent else None
