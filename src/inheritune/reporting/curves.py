"""metrics.jsonl of every training of a run: its validation losses and how it went."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune.reporting.metrics_file import Course, Health, read_metrics
from inheritune.reporting.record import Record, number, rows, section, target_name, text

__all__ = ["Curve", "read_curves", "reference_points", "thin"]

_MOST_TRAININGS = 200
_Before = tuple[float | None, float | None, float | None]
_NOTHING: _Before = (0.0, 0.0, 0.0)
_FOLDER = re.compile(r"(?P<layers>[0-9]{1,9})-layers(-seed-(?P<seed>[0-9]{1,19}))?")  # as in Run


@dataclass(frozen=True)
class Curve:
    """One training's validation losses.

    Attributes:
        variant: Its name in the recipe.
        label: Name, round and layers, as shown.
        layers: Transformer blocks; None when unknown.
        round: Counted from 1 for the target, else 0.
        offset: Tokens of the trainings that it goes on from.
        points: (tokens of this training, val_loss in nats), in order of tokens.
        health: How it went.
        problems: Sentences about what could not be read.
        course: Its optimizer steps.
        before: Steps, FLOPs and seconds of the rounds before it; None where one is not known.
        flops_per_token: Forward and backward; None when unknown.
        recorded: It has ended, and stands in ``run.json``.
        repeats: It repeats another with a further seed.
    """

    variant: str
    label: str
    layers: int | None
    round: int
    offset: int
    points: list[tuple[int, float]]
    health: Health = field(default_factory=Health)
    problems: list[str] = field(default_factory=list)
    course: Course = field(default_factory=Course)
    before: tuple[float | None, float | None, float | None] = (0.0, 0.0, 0.0)
    flops_per_token: float | None = None
    recorded: bool = False
    repeats: bool = False

    def place(self, tokens: float) -> dict[str, float | None]:
        """Where a moment of this training stands on every axis, earlier rounds counted.

        Args:
            tokens: Of this training alone.

        Returns:
            ``tokens``, ``steps``, ``flops`` and ``seconds``; None where not known.
        """
        step, seconds = self.course.at(tokens)
        flops = None if self.flops_per_token is None else tokens * self.flops_per_token
        return {
            "tokens": tokens + self.offset,
            "steps": _sum(self.before[0], step),
            "flops": _sum(self.before[1], flops),
            "seconds": _sum(self.before[2], seconds),
        }


@dataclass(frozen=True)
class _Training:
    variant: str
    layers: int | None
    round: int
    folder: Path
    tokens: int | None
    row: dict[str, Any] = field(default_factory=dict)


def read_curves(run_root: Path, record: Record) -> list[Curve]:
    """Read the metrics of the target's rounds, then of the other variants.

    Args:
        run_root: The run's directory.
        record: ``run.json``.

    Returns:
        One curve per training that is recorded or has metrics on disk. The rounds of the target
        stand one after another: each carries the tokens of those before it as its offset. So do
        the trainings of a control that goes on from itself, or from the target's first round.
    """
    curves: list[Curve] = []
    nothing = (0, _NOTHING)
    ends: dict[str, tuple[int, _Before]] = {}  # of each variant so far
    first_round = nothing
    for training in _trainings(run_root, record):
        found = read_metrics(training.folder / "metrics.jsonl")
        label, skipped = _label(training), number(training.row, "skipped")
        found.health.skipped = None if skipped is None else int(skipped)
        offset, before = nothing
        if training.round:
            offset, before = ends.get(training.variant, nothing)
        elif number(training.row, "first_sample"):
            offset, before = ends.get(training.variant, first_round)
        curve = Curve(
            training.variant,
            label,
            training.layers,
            training.round,
            offset,
            found.points,
            found.health,
            [f"{label}: {problem}" for problem in found.problems],
            found.course,
            before,
            _flops_per_token(training.row),
            bool(training.row),
            _seed_of(training.folder) is not None,
        )
        curves.append(curve)
        tokens = training.tokens or (found.points[-1][0] if found.points else 0)
        end = curve.place(tokens)
        ends[training.variant] = (offset + tokens, (end["steps"], end["flops"], end["seconds"]))
        if training.round == 1:
            first_round = ends[training.variant]
    return curves


def thin(points: Sequence[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """Keep the shape of a curve with fewer points.

    Args:
        points: (x, y) in order of x.
        limit: Most points to keep, at least 4.

    Returns:
        All points if they are few enough; else the first, the last, and the lowest and highest of
        each stretch between them, so that no spike is lost.
    """
    if len(points) <= limit:
        return list(points)
    inner, stretches = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for index in range(stretches):
        start = index * len(inner) // stretches
        stretch = inner[start : (index + 1) * len(inner) // stretches]
        extremes = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept.extend(sorted(extremes))
    return [*kept, points[-1]]


def _trainings(run_root: Path, record: Record) -> Iterator[_Training]:
    target, seen, last_round = target_name(record), set[Path](), 0
    for row in rows(record, "rounds"):
        folder = _inside(run_root, text(row, "path"))
        seen.add(folder)
        last_round += 1
        yield _Training(
            target, _whole(row, "layers"), last_round, folder, _whole(row, "tokens"), row
        )
    found = sorted(_found_on_disk(run_root), key=lambda item: (item[0] != target, item[1]))
    for variant, layers, folder in found:
        first = _seed_of(folder) is None
        if variant == target and first and folder not in seen:  # a round that has not ended
            seen.add(folder)
            last_round += 1
            yield _Training(target, layers, last_round, folder, None)
    for row in rows(record, "variants"):
        is_control = row.get("start") != "trained" and text(row, "name") != target
        if is_control and text(row, "path"):
            folder = _inside(run_root, text(row, "path"))
            seen.add(folder)
            tokens = _whole(row, "tokens")
            yield _Training(text(row, "name"), _whole(row, "layers"), 0, folder, tokens, row)
    for variant, layers, folder in found:
        if folder not in seen:
            yield _Training(variant, layers, 0, folder, None)


def _found_on_disk(run_root: Path) -> list[tuple[str, int, Path]]:
    found = []
    for metrics in sorted(run_root.glob("variants/*/*-layers*/metrics.jsonl"))[:_MOST_TRAININGS]:
        named = _FOLDER.fullmatch(metrics.parent.name)
        if named is not None:
            found.append((metrics.parent.parent.name, int(named["layers"]), metrics.parent))
    return found


def _seed_of(folder: Path) -> str | None:
    """The further seed that a training repeats another with; None: it is the first."""
    named = _FOLDER.fullmatch(folder.name)
    return None if named is None else named["seed"]


def _inside(run_root: Path, path: str) -> Path:
    # A record is a file anyone may have written: it never leads out of its run.
    folder = run_root / path if path and "\0" not in path else run_root / "missing"
    inside = folder.resolve().is_relative_to(run_root.resolve())
    return folder if inside else run_root / "missing"


def _label(training: _Training) -> str:
    parts = [training.variant[:100] or "unnamed"]
    if training.round:
        parts.append(f"round {training.round}")
    if training.layers is not None:
        parts.append(f"{training.layers} layers" if training.layers != 1 else "1 layer")
    if (seed := _seed_of(training.folder)) is not None:
        parts.append(f"seed {seed}")
    return ", ".join(parts)


def _flops_per_token(row: Record) -> float | None:
    known = number(row, "flops_per_token")
    flops, tokens = number(row, "flops"), number(row, "tokens")
    if known is None and flops is not None and tokens:
        return flops / tokens
    return known


def _sum(one: float | None, other: float | None) -> float | None:
    total = None if one is None or other is None else one + other
    return total if total is None or total == total else None  # a step that names no time: NaN


def _whole(row: dict[str, Any], key: str) -> int | None:
    value = number(row, key)
    return None if value is None else int(value)


def reference_points(record: Record) -> list[tuple[int, float]]:
    """The reference's own training: (tokens, val_loss), in order; empty when not recorded."""
    points = {
        int(tokens): val_loss
        for row in rows(section(record, "reference"), "curve")
        if (tokens := number(row, "tokens")) is not None
        and (val_loss := number(row, "val_loss")) is not None
    }
    return sorted(points.items())
