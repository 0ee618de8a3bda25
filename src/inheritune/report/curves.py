"""metrics.jsonl of every training of a run: its validation losses and how it went."""

import json
import math
import re
import statistics
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune.report.record import Record, number, rows, section, target_name, text

__all__ = ["Curve", "Health", "read_curves", "reference_points", "thin"]

_MOST_TRAININGS = 200
_FOLDER = re.compile(r"(?P<layers>[0-9]{1,9})-layers(-seed-(?P<seed>[0-9]{1,19}))?")  # as in Run


@dataclass
class Health:
    """How a training went; None where its metrics do not say."""

    steps: int | None = None
    validations: int = 0
    nonfinite: int = 0
    restarts: int = 0
    highest_grad_norm: float | None = None
    median_speed: float | None = None
    peak_memory: float | None = None


@dataclass(frozen=True)
class Curve:
    """One training's validation losses.

    Attributes:
        variant: Its name in the recipe.
        label: Name, round and layers, as shown.
        layers: Transformer blocks; None when unknown.
        round: Counted from 1 for the target, else 0.
        offset: Tokens of the rounds before it.
        points: (tokens of this training, val_loss in nats), in order of tokens.
        health: How it went.
        problems: Sentences about what could not be read.
    """

    variant: str
    label: str
    layers: int | None
    round: int
    offset: int
    points: list[tuple[int, float]]
    health: Health = field(default_factory=Health)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Training:
    variant: str
    layers: int | None
    round: int
    folder: Path
    tokens: int | None


def read_curves(run_root: Path, record: Record) -> list[Curve]:
    """Read the metrics of the target's rounds, then of the other variants.

    Args:
        run_root: The run's directory.
        record: ``run.json``.

    Returns:
        One curve per training that is recorded or has metrics on disk. The rounds of the target
        stand one after another: each carries the tokens of those before it as its offset.
    """
    curves, offset = [], 0
    for training in _trainings(run_root, record):
        points, health, problems = _read_metrics(training.folder / "metrics.jsonl")
        label = _label(training)
        curves.append(
            Curve(
                training.variant,
                label,
                training.layers,
                training.round,
                offset if training.round else 0,
                points,
                health,
                [f"{label}: {problem}" for problem in problems],
            )
        )
        if training.round:
            offset += training.tokens or (points[-1][0] if points else 0)
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
        yield _Training(target, _whole(row, "layers"), last_round, folder, _whole(row, "tokens"))
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
            yield _Training(text(row, "name"), _whole(row, "layers"), 0, folder, None)
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


def _whole(row: dict[str, Any], key: str) -> int | None:
    value = number(row, key)
    return None if value is None else int(value)


def _read_metrics(path: Path) -> tuple[list[tuple[int, float]], Health, list[str]]:
    """Read rows as a stream: a run may have a million of them."""
    points: dict[int, float] = {}
    speeds, health = array("d"), Health()
    step = -math.inf
    broken = count = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                row = _parse(line)
                if row is None:
                    broken += 1
                    continue
                count += 1
                now = number(row, "step")
                step = step if now is None else now
                health.restarts += row.get("event") == "continued"
                _take(row, points, speeds, health)
    except OSError as error:
        return [], health, [f"metrics.jsonl cannot be read ({error.strerror})"]
    health.steps = int(step) if step >= 0 else None
    health.validations = len(points)
    health.median_speed = statistics.median(speeds) if speeds else None
    problems = [f"{broken} unreadable lines of metrics.jsonl are left out"] if broken else []
    if not count:
        problems.append("metrics.jsonl has no rows yet")
    return sorted(points.items()), health, problems


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _take(
    row: dict[str, Any], points: dict[int, float], speeds: "array[float]", health: Health
) -> None:
    tokens, val_loss = number(row, "tokens"), number(row, "val_loss")
    if tokens is not None and val_loss is not None:
        points[int(tokens)] = val_loss  # a repeated step replaces the row of before the restart
    if row.get("nonfinite"):
        health.nonfinite += 1
    if (speed := number(row, "tokens_per_s")) is not None:
        speeds.append(speed)
    if (norm := number(row, "grad_norm")) is not None:
        health.highest_grad_norm = max(norm, health.highest_grad_norm or norm)
    if (memory := number(row, "memory_bytes")) is not None:
        health.peak_memory = max(memory, health.peak_memory or memory)


def reference_points(record: Record) -> list[tuple[int, float]]:
    """The reference's own training: (tokens, val_loss), in order; empty when not recorded."""
    points = {
        int(tokens): val_loss
        for row in rows(section(record, "reference"), "curve")
        if (tokens := number(row, "tokens")) is not None
        and (val_loss := number(row, "val_loss")) is not None
    }
    return sorted(points.items())
