"""Read metrics.jsonl: validation losses, optimizer steps, and signs of trouble."""

import json
import math
import statistics
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune.run_record.fields import finite_number
from inheritune.system.reading import read_lines

# Of a larger file only some of the ordinary steps are read, so that a page takes seconds.
_READ_WHOLE = 60_000_000  # bytes
# Rows with one of these are always read: validations, restarts, trouble.
_ALWAYS_READ = (b'"val_loss"', b'"event"', b'"nonfinite"', b'"spike"')


@dataclass
class Health:
    """Counts and extremes of a training; None where its metrics do not have them."""

    steps: int | None = None
    validations: int = 0
    nonfinite: int = 0
    spikes: int = 0
    restarts: int = 0
    skipped: int | None = None
    epochs: float | None = None
    highest_grad_norm: float | None = None
    median_speed: float | None = None
    median_mfu: float | None = None
    peak_memory: float | None = None


def _numbers() -> "array[float]":
    return array("d")


@dataclass
class Course:
    """The optimizer steps of a training, in order: one value per step in each array."""

    steps: "array[float]" = field(default_factory=_numbers)  # from 1
    tokens: "array[float]" = field(default_factory=_numbers)  # up to and including the step
    seconds: "array[float]" = field(default_factory=_numbers)  # elapsed at the end of the step
    losses: "array[float]" = field(default_factory=_numbers)  # in nats; NaN where not finite
    speeds: "array[float]" = field(default_factory=_numbers)  # tokens/s; NaN where unknown
    # Token counts at which the training was continued from a checkpoint.
    restarts: list[float] = field(default_factory=list)

    def at(self, tokens: float) -> tuple[float | None, float | None]:
        """Return step and elapsed seconds after so many training tokens; None where unknown."""
        if not tokens:
            return 0.0, 0.0
        index = bisect_right(self.tokens, tokens) - 1
        return (self.steps[index], self.seconds[index]) if index >= 0 else (None, None)


@dataclass(frozen=True)
class MetricsFile:
    """The content of one file."""

    points: list[tuple[int, float]]  # (tokens, val_loss in nats), in order of tokens
    health: Health
    course: Course
    problems: list[str]  # sentences about what could not be read


def read_metrics(path: Path) -> MetricsFile:
    """Read ``metrics.jsonl`` as a stream, since a run may have a million rows.

    A missing file, a torn line or a foreign row becomes a problem of the result, never an error.
    """
    reader = _MetricsReader()
    try:
        every = 1 + path.stat().st_size // _READ_WHOLE
        for index, line in enumerate(read_lines(path)):
            if index % every and not any(key in line for key in _ALWAYS_READ):
                continue
            reader.take(line)
    except OSError as error:
        problem = f"metrics.jsonl cannot be read ({error.strerror})"
        return MetricsFile([], Health(), Course(), [problem])
    return reader.metrics(every)


class _MetricsReader:
    """Collects the rows of one file."""

    def __init__(self) -> None:
        self._points: dict[int, float] = {}
        self._health, self._course = Health(), Course()
        self._mfu = array("d")
        self._rows = self._broken = 0

    def take(self, line: bytes) -> None:
        row = _parse(line)
        if row is None:
            self._broken += 1
            return
        self._rows += 1
        health, tokens = self._health, _number(row, "tokens")
        if (step := _number(row, "step")) is not None:
            health.steps = int(step)
        if (epoch := _number(row, "epoch")) is not None:
            health.epochs = epoch
        if row.get("event") == "continued":
            health.restarts += 1
            self._course.restarts += [] if tokens is None else [tokens]
        if row.get("nonfinite"):
            health.nonfinite += 1
        if tokens is not None and (val_loss := _number(row, "val_loss")) is not None:
            # A step repeated after a restart replaces the row from before it.
            self._points[int(tokens)] = val_loss
        if "loss" in row and tokens is not None:
            self._take_step(row, step, tokens)
        if (norm := _number(row, "grad_norm")) is not None:
            health.highest_grad_norm = max(norm, health.highest_grad_norm or norm)
        if (mfu := _number(row, "mfu")) is not None:
            self._mfu.append(mfu)
        if (memory := _number(row, "memory_bytes")) is not None:
            health.peak_memory = max(memory, health.peak_memory or memory)

    def _take_step(self, row: dict[str, Any], step: float | None, tokens: float) -> None:
        course = self._course
        if row.get("spike"):
            self._health.spikes += 1
        if course.tokens and tokens <= course.tokens[-1]:
            return  # not in a file of ours, where each step is written once and in order
        course.tokens.append(tokens)
        for values, value in (
            (course.steps, step),
            (course.seconds, _number(row, "elapsed_s")),
            (course.losses, _number(row, "loss")),
            (course.speeds, _number(row, "tokens_per_s")),
        ):
            values.append(math.nan if value is None else value)

    def metrics(self, every: int) -> MetricsFile:
        speeds = [speed for speed in self._course.speeds if speed == speed]
        self._health.median_speed = statistics.median(speeds) if speeds else None
        self._health.median_mfu = statistics.median(self._mfu) if self._mfu else None
        self._health.validations = len(self._points)
        problems = []
        if self._broken:
            problems.append(f"{self._broken} unreadable lines of metrics.jsonl are ignored")
        if not self._rows:
            problems.append("metrics.jsonl has no rows yet")
        if every > 1:
            problems.append(
                f"metrics.jsonl is large: one in {every} of the ordinary steps is read, so the "
                "highest gradient norm may be missed"
            )
        return MetricsFile(sorted(self._points.items()), self._health, self._course, problems)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _number(row: dict[str, Any], key: str) -> float | None:
    return finite_number(row.get(key))
