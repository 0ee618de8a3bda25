"""List the runs below a directory, and delete what a finished run no longer needs."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from inheritune.errors import DataError, RecipeError, escape
from inheritune.run_directory import Run
from inheritune.run_record import RunRecord
from inheritune.system.rows import Rows

# Only an unfinished training reads them: checkpoints, fp32 weights, starts, stored predictions.
_SPARE = (
    *("variants/*/*/checkpoints", "variants/*/*/master", "variants/*/*/start"),
    *("reference/checkpoints", "reference/logits"),
    *("checkpoints", "master"),  # of `train`
)


@dataclass(frozen=True)
class RunEntry:
    """A run in a list."""

    run: Path
    state: str  # running, killed, interrupted, failed, not read, or the outcome of a finished run
    layers: int | None  # of the target, or of its last round so far
    val_loss: float | None  # of the target, nats per held-out token
    reference_loss: float | None  # the reference's val_loss on the same tokens
    bytes: int  # size of all files
    spare_bytes: int  # of these, what `clean` would delete; 0 while the run is not finished


@dataclass(frozen=True)
class RunList(Rows):
    """The runs below a directory, by name."""

    runs: tuple[RunEntry, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One mapping for each run."""
        return [asdict(entry) | {"run": str(entry.run)} for entry in self.runs]


def list_runs(parent: Path) -> RunList:
    """List the runs that lie in a directory; a run that cannot be read is listed as such.

    Raises:
        DataError: There is no such directory.
    """
    if not parent.is_dir():
        raise DataError(
            f"there is no directory {escape(parent)}.",
            "Name the parent directory of your runs, such as runs.",
        )
    runs = [path for path in sorted(parent.iterdir()) if os.path.lexists(path / "run.json")]
    return RunList(tuple(_entry(path) for path in runs))


def clean_run(root: Path) -> int:
    """Delete what only an unfinished training reads; results, models and pages stay.

    Returns:
        The bytes that became free.

    Raises:
        RecipeError: The run is not finished; nothing is deleted.
        DataError: The directory is no run, or something in it leads out of it.
        MachineError: Another process is writing to the run.
    """
    record = Run.open(root).record()
    if record.status != "done":
        raise RecipeError(
            f"{escape(root)} is not finished ({record.status or 'not started'}): it continues from "
            "its checkpoints.",
            "Let it finish by the same command, or delete the whole directory.",
        )
    with Run.hold(root):
        size = _spare_bytes(root)
        for path in [*_spare(root)]:
            shutil.rmtree(path)
    return size


def _entry(root: Path) -> RunEntry:
    size = _bytes_below(root)
    try:
        record = Run.open(root).record()
    except DataError:
        return RunEntry(root, "not read", None, None, None, size, 0)
    layers = record.target_layers
    return RunEntry(
        run=root,
        state=_state(Run(root), record),
        layers=None if layers is None else int(layers),
        val_loss=record.target_loss,
        reference_loss=record.reference_loss,
        bytes=size,
        spare_bytes=_spare_bytes(root) if record.status == "done" else 0,
    )


def _state(run: Run, record: RunRecord) -> str:
    if record.status == "running":
        return "killed" if run.is_abandoned() else "running"
    if record.status == "done":
        return record.outcome if record.result.outcome else "done"
    return record.status or "not started"


def _spare(root: Path) -> Iterator[Path]:
    for pattern in _SPARE:
        for path in root.glob(pattern):
            # A link is none of ours, and neither is what a directory of another name holds.
            if path.resolve() == root.resolve() / path.relative_to(root):
                yield path


def _spare_bytes(root: Path) -> int:
    return sum(_bytes_below(path) for path in _spare(root))


def _bytes_below(directory: Path) -> int:
    # Links are neither followed nor counted. A training may delete a file meanwhile.
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118
                size += status.st_size if S_ISREG(status.st_mode) else 0
    return size
