"""Compare what two runs of one recipe have left, but for their times and how often they began."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "differences", "outcome_of"]

# Times, what follows from them, and how often a training was continued.
_OF_THIS_START = {
    "began_at",
    "device_hours",
    "elapsed_s",
    "finished_at",
    "memory_bytes",
    "mfu",
    "restarts",
    "seconds",
    "started_at",
    "tokens_per_s",
}
_RECORDS = ("benchmark.json", "result.json", "run.json", "samples.json")
_BYTES = (".safetensors", ".bin", ".idx", "config.json", "tokenizer.json", "tokens/manifest.json")


@dataclass(frozen=True)
class Outcome:
    """What a finished run has left.

    Attributes:
        files: Every path below the run's directory.
        rows: Of each metrics.jsonl, its rows without times, and without those of a continuation.
        records: Of each JSON record, its values without times.
        digests: SHA-256 of each file that holds weights, tokens or configuration.
    """

    files: set[str]
    rows: dict[str, list[Any]]
    records: dict[str, Any]
    digests: dict[str, str]


def outcome_of(root: Path) -> Outcome:
    """Read what a run has left."""
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*"))}
    return Outcome(
        files=set(files),
        rows={
            name: [_comparable(row) for row in _rows(path) if row.get("event") != "continued"]
            for name, path in files.items()
            if path.name == "metrics.jsonl"
        },
        records={
            name: _comparable(json.loads(path.read_text()))
            for name, path in files.items()
            if path.name in _RECORDS
        },
        digests={
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in files.items()
            if path.name.endswith(_BYTES)
        },
    )


def differences(truth: Outcome, other: Outcome) -> Iterator[str]:
    """Say where a run differs from the one that was left alone."""
    if extra := other.files - truth.files:
        yield f"left over: {', '.join(sorted(extra))}"
    if missing := truth.files - other.files:
        yield f"missing: {', '.join(sorted(missing))}"
    for kind in ("rows", "records", "digests"):
        one, two = getattr(truth, kind), getattr(other, kind)
        for name in one.keys() & two.keys():
            if one[name] != two[name]:
                yield f"{name}: {first_difference(one[name], two[name])}"


def first_difference(one: Any, two: Any) -> str:
    """Where two JSON values differ first."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        key = next(key for key in one if one[key] != two[key])
        return f"{key}: {first_difference(one[key], two[key])}"
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        index = next(i for i, value in enumerate(one) if value != two[i])
        return f"{index}: {first_difference(one[index], two[index])}"
    return f"{str(one)[:200]} became {str(two)[:200]}"


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _comparable(entry) for key, entry in value.items() if key not in _OF_THIS_START
        }
    return [_comparable(entry) for entry in value] if isinstance(value, list) else value
