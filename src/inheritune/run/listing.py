"""List the runs below a directory, and delete what finished trainings no longer need."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from inheritune.errors import DataError, RecipeError, escape
from inheritune.run_directory import Run
from inheritune.run_record.record import TRAIN, RunRecord
from inheritune.system.rows import Rows

# Checkpoints, fp32 weights, and a reference's predictions for a distillation.
_PARTS = ("checkpoints", "master", "logits")


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


def clean_runs(roots: Sequence[Path]) -> dict[str, int]:
    """Delete checkpoints and fp32 weights of finished trainings; results, models and pages stay.

    The end of the last round stays where the target has not matched, so that it can still grow.

    Args:
        roots: Directories of runs. All are looked at before anything is deleted.

    Returns:
        The bytes that became free, by run.

    Raises:
        RecipeError: A run is not finished.
        DataError: A directory is no run, or something in it leads out of it.
        MachineError: Another process is writing to a run.
    """
    records = {root: Run.open(root).record() for root in roots}
    for root, record in records.items():
        if not _is_finished(record):
            raise RecipeError(
                f"{escape(root)} is not finished ({_state(Run(root), record)}): it continues from "
                "its checkpoints.",
                "Let it finish by the same command, or delete the whole directory.",
            )
    return {str(root): _clean(Run(root), record) for root, record in records.items()}


def _clean(run: Run, record: RunRecord) -> int:
    with run.lock():
        spare = [*_spare(run, record)]
        size = sum(_bytes_below(path) for path in spare)
        for path in spare:
            shutil.rmtree(path)
    return size


def _is_finished(record: RunRecord) -> bool:
    # A step alone, such as `prepare` or `train RECIPE`, is recorded as done, too.
    has_result = record.command == TRAIN or bool(record.result.outcome)
    return record.status == "done" and has_result


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
        spare_bytes=sum(_bytes_below(path) for path in _spare(Run(root), record)),
    )


def _state(run: Run, record: RunRecord) -> str:
    if record.status == "running":
        return "killed" if run.is_abandoned() else "running"
    if record.status != "done":
        return record.status or "not started"
    if record.result.outcome:
        return record.outcome
    return "done" if record.command == TRAIN else "only steps of it"


def _spare(run: Run, record: RunRecord) -> Iterator[Path]:
    """List the directories that only an unfinished training reads."""
    if not _is_finished(record):
        return
    last_round = record.rounds[-1].path if record.rounds else None
    kept = None if record.outcome == "matched" or not last_round else run.root / last_round
    trainings = [run.root, run.reference, *(folder.path for folder in run.trainings())]
    for training in trainings:
        is_trained = (training / "result.json").is_file()
        for name in _PARTS if is_trained and training != kept else ():
            path = training / name
            if path.is_dir() and path.resolve() == run.root.resolve() / path.relative_to(run.root):
                yield path  # no link, nor below one


def _bytes_below(directory: Path) -> int:
    # Links are neither followed nor counted. A training may delete a file meanwhile.
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118
                size += status.st_size if S_ISREG(status.st_mode) else 0
    return size
