"""Read the loss curve of every training of a run, and place it after the trainings before it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from inheritune.reporting.metrics_file import Course, Health, read_metrics
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel

T = TypeVar("T")

_MAX_TRAININGS = 200

# A point of a curve: "tokens", "steps", "flops", "seconds", and "value" where something was
# measured; None where it is unknown.
Row = dict[str, float | None]

_START: Row = {"tokens": 0.0, "steps": 0.0, "flops": 0.0, "seconds": 0.0}


@dataclass(frozen=True)
class Curve:
    """The validation losses and steps of one training."""

    variant: str
    label: str  # name, round, layers and seed, as shown
    layers: int | None
    round: int  # counted from 1 for the target; 0 for a control
    # (tokens of this training, val_loss in nats), in order of tokens.
    points: Sequence[tuple[int, float]]
    # Position at which this training began: the end of the one that it continues.
    start: Row = field(default_factory=lambda: _START)
    health: Health = field(default_factory=Health)
    problems: Sequence[str] = ()  # sentences about what could not be read
    course: Course = field(default_factory=Course)
    flops_per_token: float | None = None
    recorded: bool = False  # the training has ended and is in `run.json`
    is_repeat: bool = False  # the training repeats another with a further seed

    @property
    def offset(self) -> int:
        """Tokens of the trainings that this one continues."""
        return int(self.start["tokens"] or 0)

    @property
    def has_begun(self) -> bool:
        """Whether any step or validation is on disk."""
        return bool(self.points or self.course.steps)

    def position(self, tokens: float) -> Row:
        """Locate a moment of this training on every axis, with earlier rounds included."""
        step, seconds = self.course.at(tokens)
        flops = None if self.flops_per_token is None else tokens * self.flops_per_token
        return {
            "tokens": tokens + self.offset,
            "steps": _sum(self.start["steps"], step),
            "flops": _sum(self.start["flops"], flops),
            "seconds": _sum(self.start["seconds"], seconds),
        }


@dataclass(frozen=True)
class _Training:
    variant: str
    layers: int | None
    round: int
    folder: Path
    row: TrainedModel | None = None  # None: it has not ended

    @property
    def seed(self) -> int | None:
        folder = Run.training_at(self.folder)
        return None if folder is None else folder.seed

    @property
    def label(self) -> str:
        parts = [self.variant[:100] or "unnamed"]
        if self.round:
            parts.append(f"round {self.round}")
        if self.layers is not None:
            parts.append(f"{self.layers} layers" if self.layers != 1 else "1 layer")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return ", ".join(parts)


def read_curves(run_root: Path, record: RunRecord) -> list[Curve]:
    """Read the metrics of the target's rounds, then of the other variants.

    The rounds of the target follow one another: each starts where the one before ended. So do the
    trainings of a control that continues from itself, or from the target's first round.
    """
    curves: list[Curve] = []
    ends: dict[str, Row] = {}  # where each variant has come to so far
    first_round = _START
    for training in _trainings(Run(run_root), record):
        row = training.row or TrainedModel()
        metrics = read_metrics(training.folder / "metrics.jsonl")
        metrics.health.skipped = _int(row.skipped)
        start = _START
        if training.round:
            start = ends.get(training.variant, _START)
        elif row.first_sample:
            start = ends.get(training.variant, first_round)
        curve = Curve(
            variant=training.variant,
            label=training.label,
            layers=training.layers,
            round=training.round,
            points=metrics.points,
            start=start,
            health=metrics.health,
            problems=[f"{training.label}: {problem}" for problem in metrics.problems],
            course=metrics.course,
            flops_per_token=row.train_flops_per_token,
            recorded=training.row is not None,
            is_repeat=training.seed is not None,
        )
        curves.append(curve)
        last_tokens = metrics.points[-1][0] if metrics.points else 0
        ends[training.variant] = curve.position(_int(row.tokens) or last_tokens)
        if training.round == 1:
            first_round = ends[training.variant]
    return curves


def thin(items: Sequence[T], limit: int, value_of: Callable[[T], float]) -> list[T]:
    """Keep the shape of a curve with fewer points.

    Of more than ``limit`` points (at least 4), the first and the last are kept, and the lowest and
    highest of each stretch between them, so that no spike is lost.
    """
    if len(items) <= limit:
        return list(items)
    inner, stretches = items[1:-1], (limit - 2) // 2
    thinned = [items[0]]
    for index in range(stretches):
        start = index * len(inner) // stretches
        stretch = inner[start : (index + 1) * len(inner) // stretches]
        lowest, highest = min(stretch, key=value_of), max(stretch, key=value_of)
        thinned += [item for item in stretch if item is lowest or item is highest]
    return [*thinned, items[-1]]


def reference_points(record: RunRecord) -> list[tuple[int, float]]:
    """List (tokens, val_loss) of the reference's own training, in order, if it is recorded."""
    points = {
        int(point.tokens): point.val_loss
        for point in record.reference.curve
        if point.tokens is not None and point.val_loss is not None
    }
    return sorted(points.items())


def _trainings(run: Run, record: RunRecord) -> Iterator[_Training]:
    target, yielded, round_number = record.target_name, set[Path](), 0
    # --- rounds that have ended ---
    for row in record.rounds:
        folder = run.inside(row.path or "")
        yielded.add(folder)
        round_number += 1
        if row.start != "patched":  # it has no training, and no curve
            yield _Training(target, _int(row.layers), round_number, folder, row)
    # --- a round that has not ended: on disk, but not in the record ---
    trainings = run.trainings()[:_MAX_TRAININGS]
    on_disk = [training for training in trainings if (training.path / "metrics.jsonl").exists()]
    on_disk.sort(key=lambda training: (training.variant != target, training.layers))
    for training in on_disk:
        if training.variant == target and training.seed is None and training.path not in yielded:
            yielded.add(training.path)
            round_number += 1
            yield _Training(target, training.layers, round_number, training.path)
    # --- controls, then whatever else is on disk ---
    for row in record.variants:
        if row.start != "trained" and row.name != target and row.path:
            folder = run.inside(row.path)
            yielded.add(folder)
            yield _Training(row.name or "", _int(row.layers), 0, folder, row)
    for training in on_disk:
        if training.path not in yielded:
            yield _Training(training.variant, training.layers, 0, training.path)


def _sum(one: float | None, other: float | None) -> float | None:
    total = None if one is None or other is None else one + other
    return total if total is None or total == total else None  # NaN: a step without a time


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)
