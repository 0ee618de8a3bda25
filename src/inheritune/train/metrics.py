"""metrics.jsonl: a row for every step, evaluation and restart; no step stands in it twice."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inheritune.train.state import Position

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Metrics", "continued_row", "step_row", "val_row"]


class Metrics:
    """The file, cut back to the checkpoint that a training continues from.

    Args:
        path: The file; its directory is made where missing.
        keep_to_step: Step of the checkpoint; later rows, and torn ones, are dropped. 0: all are.

    Attributes:
        val_losses: Nats per token by step, None where not finite.
        restarts: How often the training was continued, up to that checkpoint.
    """

    def __init__(self, path: Path, keep_to_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in _read_rows(path) if keep_to_step and row["step"] <= keep_to_step]
        self.val_losses: dict[int, float | None] = {
            row["step"]: row["val_loss"] for row in rows if "val_loss" in row
        }
        self.restarts = sum(row.get("event") == "continued" for row in rows)
        self._path = path
        whole = path.with_name(".metrics.jsonl.tmp")
        whole.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        whole.replace(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is in the file when this returns."""
        self.restarts += row.get("event") == "continued"
        if "val_loss" in row:
            self.val_losses[row["step"]] = row["val_loss"]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def step_row(
    position: Position, epoch: float, loss: float, norm: float, rate: float, tokens_per_s: float
) -> dict[str, Any]:
    """The row of an optimizer step; a value that is not finite is null and named.

    Args:
        position: After the step.
        epoch: Passes over the training tokens so far.
        loss: Mean over the step, nats per token.
        norm: Of the mean gradient, before clipping.
        rate: Learning rate.
        tokens_per_s: Of this step alone.
    """
    row = _place(position, epoch) | {
        "loss": loss if math.isfinite(loss) else None,
        "grad_norm": norm if math.isfinite(norm) else None,
        "learning_rate": rate,
        "tokens_per_s": round(tokens_per_s, 1),
        "memory_bytes": _memory_bytes(),
    }
    if not math.isfinite(loss + norm):
        row["nonfinite"] = str(loss if not math.isfinite(loss) else norm)
    return row


def val_row(position: Position, epoch: float, val_loss: float) -> dict[str, Any]:
    """The row of an evaluation, nats per token."""
    return _place(position, epoch) | {"val_loss": val_loss if math.isfinite(val_loss) else None}


def continued_row(position: Position, epoch: float) -> dict[str, Any]:
    """The mark of a training that goes on from a checkpoint."""
    return _place(position, epoch) | {"event": "continued"}


def _place(position: Position, epoch: float) -> dict[str, Any]:
    return {
        "step": position.step,
        "tokens": position.tokens,
        "epoch": round(epoch, 6),
        "elapsed_s": round(position.elapsed_s, 3),
    }


def _memory_bytes() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                rows += [row] if isinstance(row["step"], int) else []
            except (ValueError, TypeError, KeyError):
                continue  # a line torn by a kill
    return rows
