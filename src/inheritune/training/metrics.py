"""Write metrics.jsonl: a row for every step, validation and restart, and no step twice."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from inheritune.system.files import (
    append_text,
    make_directory,
    sync_file,
    write_bytes,
    write_errors,
)
from inheritune.system.processes import ALONE, Processes
from inheritune.system.reading import read_lines
from inheritune.training.checkpoint import Position
from inheritune.training.throughput import peak_bytes

OnRow = Callable[[Mapping[str, Any]], None]

SPIKE_WINDOW = 128  # losses that one is compared with
SPIKE_SIGMAS = 6.0  # standard deviations above their mean: the row is marked, no more


class Metrics:
    """The rows of a training; only process 0 has them all, and a path to write them to."""

    def __init__(
        self, path: Path | None, rows: list[dict[str, Any]], on_row: OnRow | None = None
    ) -> None:
        self.val_losses: dict[int, float | None] = {}  # nats per token by step, None: not finite
        self.restarts = 0
        self._path, self._on_row = path, on_row
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._bytes, self._sha256 = 0, hashlib.sha256()  # of the rows in the file
        for row in rows:
            self._note(row)

    @classmethod
    def open(
        cls,
        path: Path,
        keep_to_step: int,
        processes: Processes = ALONE,
        on_row: OnRow | None = None,
    ) -> Self:
        """Cut the file back to the checkpoint that a training continues from.

        Rows after ``keep_to_step``, and torn ones, are dropped; with 0 all are.
        """
        rows: list[dict[str, Any]] = []

        def cut_back() -> list[dict[str, Any]]:
            make_directory(path.parent)
            rows.extend(r for r in _read_rows(path) if keep_to_step and r["step"] <= keep_to_step)
            write_bytes(path, *map(_line, rows))
            return [row for row in rows if "val_loss" in row or "event" in row]

        decisive_rows = processes.on_main(cut_back)
        return cls(path, rows, on_row) if processes.rank == 0 else cls(None, decisive_rows)

    @property
    def best_step(self) -> int | None:
        """Step of the lowest val_loss so far."""
        losses = {step: loss for step, loss in self.val_losses.items() if loss is not None}
        return min(losses, key=lambda step: losses[step]) if losses else None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, marked if its loss is a spike; it is in the file when this returns."""
        if (sigmas := self._sigmas(row.get("loss"))) > SPIKE_SIGMAS:
            row = {**row, "spike": round(sigmas, 1)}
        self._note(row)
        if self._path is not None:
            append_text(self._path, _line(row).decode())
            if self._on_row is not None:
                self._on_row(row)

    def synced(self) -> dict[str, Any] | None:
        """Wait until all rows are on the disk; return their size and digest, for a checkpoint.

        None in processes that write no rows.
        """
        if self._path is None:
            return None
        with write_errors(self._path):
            sync_file(self._path)
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}

    def _note(self, row: Mapping[str, Any]) -> None:
        self._bytes += len(_line(row))
        self._sha256.update(_line(row))
        self.restarts += row.get("event") == "continued"
        if "val_loss" in row:
            self.val_losses[row["step"]] = row["val_loss"]
        if row.get("loss") is not None:
            self._losses.append(row["loss"])

    def _sigmas(self, loss: float | None) -> float:
        """Return by how many standard deviations a loss lies above the mean of the last ones."""
        if loss is None or len(self._losses) < SPIKE_WINDOW:
            return 0.0
        before = np.array(self._losses)
        sigma = float(before.std(ddof=1))
        return (loss - float(before.mean())) / sigma if sigma else 0.0


def record_end(path: Path, val_loss: float, on_row: OnRow | None = None) -> int:
    """Add the val_loss at a training's end, where its last step has none; count its validations."""
    last = _read_rows(path)[-1]
    metrics = Metrics.open(path, last["step"], on_row=on_row)
    # The last one has its row already where a kill fell between the row and the result.
    measured = len({*metrics.val_losses, last["step"]})
    if last["step"] not in metrics.val_losses:
        place = {key: last[key] for key in ("step", "tokens", "epoch", "elapsed_s")}
        metrics.append(place | {"val_loss": val_loss})
    metrics.synced()  # before the result that is made from it
    return measured


def step_row(
    position: Position,
    epoch: float,
    *,
    loss: float,
    grad_norm: float,
    learning_rate: float,
    tokens_per_s: float,
    mfu: float | None = None,
    parts: Sequence[float] = (),
    alpha: float | None = None,
) -> dict[str, Any]:
    """Make the row of an optimizer step; a value that is not finite is null and named.

    Args:
        loss: Mean over the step, nats per token.
        grad_norm: Norm of the mean gradient, before clipping.
        parts: Cross-entropy and KL divergence of a distillation, nats per token, and the distance
            of hidden states per token, summed over layers; unweighted.
        alpha: Weight of the cross-entropy, where it changes between steps.
    """
    row = _place(position, epoch) | {
        "loss": _finite(loss),
        "grad_norm": _finite(grad_norm),
        "learning_rate": learning_rate,
        "tokens_per_s": round(tokens_per_s, 1),
        "mfu": None if mfu is None else round(mfu, 4),
        "memory_bytes": peak_bytes(),
    }
    if not math.isfinite(loss + grad_norm):
        row["nonfinite"] = str(loss if not math.isfinite(loss) else grad_norm)
    row |= {} if alpha is None else {"alpha": alpha}
    columns = zip(("ce", "kl", "hidden"), parts, strict=False)
    return row | {name: _finite(part) for name, part in columns}


def val_row(position: Position, epoch: float, val_loss: float) -> dict[str, Any]:
    """Make the row of a validation, nats per token."""
    return _place(position, epoch) | {"val_loss": _finite(val_loss)}


def continued_row(position: Position, epoch: float) -> dict[str, Any]:
    """Make the row that marks a resume from a checkpoint."""
    return _place(position, epoch) | {"event": "continued"}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _place(position: Position, epoch: float) -> dict[str, Any]:
    return {
        "step": position.step,
        "tokens": position.tokens,
        "epoch": round(epoch, 6),
        "elapsed_s": round(position.elapsed_s, 3),
    }


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    if path.exists():
        for line in read_lines(path):
            try:
                row = json.loads(line.decode(errors="replace"))
                rows += [row] if isinstance(row["step"], int) else []
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # a line torn by a kill
    return rows
