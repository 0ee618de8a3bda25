"""run.json as the report reads it: a mapping in which anything may be missing or wrong."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import DataError

__all__ = [
    "Cost",
    "Record",
    "benchmark_of",
    "equal_compute_of",
    "number",
    "read_record",
    "reference_cost",
    "rows",
    "scratch_of",
    "section",
    "target_cost",
    "target_name",
    "target_of",
    "target_row",
    "text",
]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a training took; None where the record does not say.

    Attributes:
        tokens: Training tokens, repeats counted.
        flops: Floating point operations.
        seconds: Time on this machine.
        rounds: Trainings added up.
    """

    tokens: float | None
    flops: float | None
    seconds: float | None
    rounds: int = 1


def read_record(run_root: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Args:
        run_root: The run's directory.

    Raises:
        DataError: There is no ``run.json``, or it is not one JSON object.
    """
    path = run_root / "run.json"
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}.",
            "Give the directory of a run: the one that holds run.json.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON.", "Run the recipe again to write it anew.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} holds no JSON object.", "Run the recipe again to write it anew.")
    return record


def section(record: Record, key: str) -> dict[str, Any]:
    """The mapping under ``key``; empty when it is missing or something else."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def rows(record: Record, key: str) -> list[dict[str, Any]]:
    """The mappings of the list under ``key``; empty when it is missing or something else."""
    value = record.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def number(record: Record, key: str) -> float | None:
    """The finite number under ``key``, or None."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def text(record: Record, key: str) -> str:
    """The text under ``key``; an error written as a mapping is joined to its sentences."""
    value = record.get(key)
    if isinstance(value, dict):
        value = " ".join(str(value[part]) for part in ("message", "hint") if value.get(part))
    return "" if value is None else str(value)


def target_name(record: Record) -> str:
    """Name of the variant that inherits and grows."""
    for name, variant in section(section(record, "recipe"), "variants").items():
        if not isinstance(variant, dict) or variant.get("start") != "inherit":
            continue
        if variant.get("select") is None and variant.get("parts") in (None, "all"):
            return str(name)
    return "inherit"


def target_of(record: Record) -> dict[str, Any]:
    """The target's last round: its size, losses and paired difference; empty before any."""
    done = rows(record, "rounds")
    layers = section(record, "result").get("layers")
    fitting = [row for row in done if layers is None or row.get("layers") == layers]
    return (fitting or done or [{}])[-1]


def target_row(record: Record) -> dict[str, Any]:
    """The target among the variants: over all of its seeds; empty before there is a result."""
    name = target_name(record)
    return next((row for row in rows(record, "variants") if row.get("name") == name), {})


def benchmark_of(record: Record) -> float | None:
    """The reference's val_loss, nats per held-out token."""
    result = number(section(record, "result"), "benchmark")
    return result if result is not None else number(section(record, "benchmark"), "val_loss")


def target_cost(record: Record) -> Cost:
    """What all rounds of the target took together, those that were thrown away included."""
    done = rows(record, "rounds")
    if done:
        return Cost(
            _sum(done, "tokens"), _sum(done, "flops"), _sum(done, "seconds"), rounds=len(done)
        )
    return Cost(None, None, None, rounds=0)


def reference_cost(record: Record) -> Cost:
    """What the reference's own training took, wherever that was."""
    reference = section(record, "reference")
    for row in rows(record, "ledger"):
        if text(row, "item").lower().startswith("reference training"):
            tokens = number(row, "tokens") or number(reference, "trained_tokens")
            return Cost(tokens or None, number(row, "flops") or None, number(row, "seconds"))
    return Cost(number(reference, "trained_tokens") or None, None, None)


def scratch_of(record: Record) -> dict[str, Any]:
    """The control: fresh weights, the target's layers, one round's tokens; empty if none."""
    equal = equal_compute_of(record)
    layers = section(record, "result").get("layers") or target_of(record).get("layers")
    fresh = [
        row
        for row in rows(record, "variants")
        if _is_scratch(row)
        and not row.get("made_of")  # of a learning rate of its own, or a part of stacking
        and row is not equal
        and number(row, "val_loss") is not None
    ]
    same_size = [row for row in fresh if layers is None or row.get("layers") == layers]
    tokens = target_of(record).get("tokens")
    same_tokens = [row for row in same_size if tokens is None or row.get("tokens") == tokens]
    named = [row for row in same_tokens or same_size if row.get("name") == "scratch"]
    return (named or same_tokens or same_size or [{}])[0]


def equal_compute_of(record: Record) -> dict[str, Any]:
    """The control that was given as many FLOPs as all rounds together; empty if none."""
    planned = section(section(record, "recipe"), "variants")
    for row in rows(record, "variants"):
        name = text(row, "name")
        if _is_scratch(row) and (
            section(planned, name).get("tokens") == "equal_compute"
            or name.replace("-", "_") in {"equal_compute", "scratch_equal_compute"}
        ):
            return row
    return {}


def _is_scratch(row: Record) -> bool:
    return row.get("start") == "fresh" and not row.get("distill")  # that one had a reference


def _sum(records: list[dict[str, Any]], key: str) -> float | None:
    values = [number(row, key) for row in records]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) and known else None
