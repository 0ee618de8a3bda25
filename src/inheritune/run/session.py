"""One start of a run: its lock, its record, and the processes that share its work."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inheritune.errors import (
    DataError,
    InherituneError,
    Interrupted,
    MachineError,
    RecipeError,
    escape,
)
from inheritune.recipe.load import RecipeFile
from inheritune.run_directory import RUN, TRAIN, Run
from inheritune.steps.job import Job
from inheritune.steps.resume import allowed_inputs, find_checkpoint
from inheritune.steps.workers import serve
from inheritune.system.environment import machine, versions
from inheritune.system.files import write_json
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import catch_signals

__all__ = ["Begin", "Work", "carry_out"]

Work = Callable[[Job], tuple[dict[str, Any], int]]

_REFUSED = {RecipeError.exit_code, DataError.exit_code}


@dataclass(frozen=True)
class Begin:
    """How a start differs from the ones before.

    Attributes:
        command: ``RUN`` or ``TRAIN``; one does not go on in the directory of the other.
        allowed: Recipe keys that may differ from what the run was begun with; recorded.
        checkpoint: The one that the unfinished training goes on from; None: the newest.
    """

    command: str = RUN
    allowed: Collection[str] = ()
    checkpoint: Path | None = None


def carry_out(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener,
    work: Work,
    begin: Begin = Begin(),
) -> tuple[dict[str, Any], int]:
    """Do some work in a run directory: the first process does it and records it.

    The others do their part of each training.

    Args:
        recipe: What is recorded as asked for; without a text, no recipe.yaml is written.
        root: The run's directory.
        on_progress: Told what goes on.
        work: Given a job, returns a result and an exit code.
        begin: How this start differs from the ones before.

    Returns:
        What the work returned; of several processes, all but the first have no result.

    Raises:
        InherituneError: It could not be done; the record says why, and what was done stays.
    """
    keys = allowed_inputs(recipe.recipe, begin.allowed)
    if "WORLD_SIZE" not in os.environ:  # not started by torchrun, and torch is not needed yet
        return _recorded(recipe, root, on_progress, work, ALONE, keys, begin)
    from inheritune.training.fsdp import my_share
    from inheritune.training.process_group import join

    def checked(job: Job) -> tuple[dict[str, Any], int]:
        my_share(recipe.recipe.train, processes)  # before anything is prepared for it
        return work(job)

    processes = join()
    try:
        if processes.rank:
            with catch_signals() as stop:
                job = Job(recipe.recipe, Run(root), stop, silent, processes, keys)
                return {}, serve(job)
        code = 1
        try:
            value, code = _recorded(recipe, root, on_progress, checked, processes, keys, begin)
        except InherituneError as error:
            code = error.exit_code
            raise
        finally:
            processes.post({"do": "end", "code": code})
        return value, code
    finally:
        processes.leave()


def _recorded(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener,
    work: Work,
    processes: Processes,
    allowed: frozenset[str],
    begin: Begin,
) -> tuple[dict[str, Any], int]:
    run = Run.create(root)
    began = time.monotonic()
    with run.lock(), catch_signals() as stop:
        before = run.read()
        _refuse_other_command(root, before, begin.command)
        kept = {path: path.read_bytes() for path in (run.recipe_file, run.pin) if path.exists()}
        if recipe.text:
            run.recipe_file.write_text(recipe.text, encoding="utf-8")
        here = {"versions": versions(), "machine": machine(), "processes": processes.size}
        run.update(
            command=begin.command,
            name=recipe.recipe.name,
            status="running",
            started_at=before.get("started_at") or _now(),
            finished_at=None,
            exit_code=None,
            error=None,
            recipe=recipe.recipe.resolved(),
            origins=recipe.origins,
            scaled=recipe.scaled or None,
            **here,
            earlier=_elsewhere(before, here),
            allowed_changes=sorted({*before.get("allowed_changes", []), *allowed}),
        )

        def close(status: str, code: int, error: str | None = None) -> None:
            seconds = (before.get("seconds") or 0.0) + time.monotonic() - began
            run.update(
                status=status,
                exit_code=code,
                error=error,
                finished_at=_now(),
                seconds=round(seconds, 1),
            )

        checkpoint, metrics_before = None, None
        try:
            listener = _logged(run.log_file, on_progress)
            if begin.checkpoint is not None:
                checkpoint = find_checkpoint(run, begin.checkpoint)
                metrics_before = _metrics_time(checkpoint)
            job = Job(recipe.recipe, run, stop, listener, processes, allowed, checkpoint)
            value, code = work(job)
        except InherituneError as error:
            if checkpoint and _metrics_time(checkpoint) != metrics_before:
                error = _without_from(error)
            with suppress(InherituneError):  # a full disk must not hide the first error
                if _stays(before, error):
                    if recipe.text and run.recipe_file not in kept:
                        run.recipe_file.unlink()
                    for path, content in kept.items():
                        path.write_bytes(content)
                    write_json(run.record_file, before)
                else:
                    status = "interrupted" if error.exit_code == 75 else "failed"
                    close(status, error.exit_code, str(error))
            raise error
        except BaseException as error:
            code = MachineError.exit_code if isinstance(error, OSError) else 1
            with suppress(InherituneError):
                close("failed", code, f"{type(error).__name__}: {error}"[:500])
            raise
        close("done", code)
        return value, code


def _elsewhere(before: Mapping[str, Any], here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What earlier starts ran on, where it was not the same as here; each once, in their order."""
    last = {key: before[key] for key in here if key in before}
    known = [*before.get("earlier", []), *([last] if last else [])]
    return [was for at, was in enumerate(known) if was != here and was not in known[:at]]


def _stays(before: Mapping[str, Any], error: InherituneError) -> bool:
    """Whether a run stays as it was recorded, since only this start is refused."""
    if before.get("result"):
        return error.exit_code in _REFUSED
    # Not finished, but begun: the recipe that it was begun with is the one that goes on.
    begun = before.get("status") and before.get("exit_code") != RecipeError.exit_code
    return bool(begun) and isinstance(error, RecipeError)


def _without_from(error: InherituneError) -> InherituneError:
    """Of a training that has gone on from a named checkpoint: it must not do so once more."""
    if not isinstance(error, Interrupted):
        return error
    return Interrupted(error.message, "Run it again without --from to continue.")


def _metrics_time(checkpoint: Path) -> int | None:
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    return metrics.stat().st_mtime_ns if metrics.exists() else None


def _refuse_other_command(root: Path, before: Mapping[str, Any], command: str) -> None:
    if not before.get("started_at"):
        return  # made just now, or never come so far
    its = before.get("command", RUN)
    if its != command:
        kinds = {RUN: "the run of a recipe", TRAIN: "a training without a recipe"}
        raise RecipeError(
            f"{escape(root)} holds {kinds.get(its, 'something else')}, not {kinds[command]}.",
            "Name another directory.",
        )


def _logged(path: Path, listener: Listener) -> Listener:
    """A listener that also keeps every event, with its time, in a file."""

    def on_progress(progress: Progress) -> None:
        if progress.message:
            with path.open("a", encoding="utf-8") as log:
                log.write(f"{_now()} {progress.task}: {progress.message}\n")
        listener(progress)

    return on_progress


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
