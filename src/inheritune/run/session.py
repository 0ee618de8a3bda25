"""Run one start of a run: lock its directory, record it in run.json, share work among processes."""

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from inheritune.errors import (
    NOT_MATCHED_EXIT_CODE,
    DataError,
    InherituneError,
    Interrupted,
    MachineError,
    RecipeError,
    escape,
    first_line,
)
from inheritune.recipe.load import RecipeFile
from inheritune.run.record import record_end, record_start
from inheritune.run_directory import Run
from inheritune.run_record.record import RUN, TRAIN, RunRecord
from inheritune.steps.job import Job
from inheritune.steps.resume import allowed_inputs, find_checkpoint
from inheritune.steps.training import compiler_files
from inheritune.steps.workers import serve
from inheritune.system.environment import utc_now
from inheritune.system.files import append_text, write_bytes, write_json
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.refusals import missing_directories, removed_if_refused
from inheritune.system.secrets import mask
from inheritune.system.signals import catch_signals

T = TypeVar("T")

# Errors that refuse a start before it has changed anything.
_REFUSALS = {RecipeError.exit_code, DataError.exit_code}


@dataclass(frozen=True)
class Start:
    """How one start of a run differs from the starts before it.

    Attributes:
        command: ``RUN`` or ``TRAIN``; one does not continue in a directory of the other.
        allowed: Recipe keys that may differ from those the run began with; recorded.
        checkpoint: Checkpoint from which the unfinished training continues; None: the newest.
    """

    command: str = RUN
    allowed: Collection[str] = ()
    checkpoint: Path | None = None


def carry_out(
    recipe: RecipeFile,
    root: Path,
    work: Callable[[Job], T],
    on_progress: Listener = silent,
    start: Start = Start(),
    missed: Callable[[T], bool] = lambda result: False,
) -> T | None:
    """Do some work in a run directory, together with the other processes of the run, if any.

    Process 0 does the work and records it; the others do their share of each training.

    Args:
        recipe: Recorded in run.json; recipe.yaml is written only where the recipe has a text.
        root: The run's directory; it is created, or an unfinished run in it is continued.
        work: Called in process 0 alone.
        on_progress: Called with every event, in process 0; messages also go to log.txt.
        missed: Whether a result missed its goal; run.json then records another exit code.

    Returns:
        The result of ``work``; None in all processes but the first.

    Raises:
        InherituneError: The work failed; run.json says why, and completed steps stay.
        SystemExit: In all processes but the first, with 0, where the work failed in the first.
    """
    allowed = allowed_inputs(recipe.recipe, start.allowed)
    if "WORLD_SIZE" not in os.environ:  # one process, and torch is not needed yet
        return _record_work(recipe, root, work, on_progress, start, missed, allowed, ALONE)[0]
    from inheritune.training.fsdp import my_share
    from inheritune.training.process_group import join

    def work_on_whole_shares(job: Job) -> T:
        my_share(recipe.recipe.train, processes)  # refused before anything is prepared
        return work(job)

    processes = join(60 * recipe.recipe.train.timeout_minutes)
    try:
        if processes.rank:
            with catch_signals() as stop:
                code = serve(Job(recipe.recipe, Run(root), stop, silent, processes, allowed))
            if code not in (0, NOT_MATCHED_EXIT_CODE):
                # Process 0 alone ends with the code: a launcher stops the rest where one fails.
                raise SystemExit(0)
            return None
        code = 1
        try:
            result, code = _record_work(
                recipe, root, work_on_whole_shares, on_progress, start, missed, allowed, processes
            )
        except InherituneError as error:
            code = error.exit_code
            raise
        finally:
            processes.post({"do": "end", "code": code})
        return result
    finally:
        processes.leave()


def _record_work(
    recipe: RecipeFile,
    root: Path,
    work: Callable[[Job], T],
    on_progress: Listener,
    start: Start,
    missed: Callable[[T], bool],
    allowed: frozenset[str],
    processes: Processes,
) -> tuple[T, int]:
    """Do the work in this process; returns its result and the exit code that was recorded."""
    new = missing_directories(root)
    with (
        Run.hold(root) as run,
        removed_if_refused(new, run.own_files),
        catch_signals() as stop,
        compiler_files(root),
    ):
        record = _StartRecord(run, recipe, start, allowed, processes)
        try:
            checkpoint = start.checkpoint and find_checkpoint(run, start.checkpoint)
            log = _with_log(run.log_file, on_progress)
            job = Job(recipe.recipe, run, stop, log, processes, allowed, checkpoint)
            result = work(job)
        except InherituneError as error:
            if isinstance(error, Interrupted) and record.has_trained():
                # The branch that --from began is now the newest: naming it again would repeat it.
                error = Interrupted(error.message, "Run it again without --from to continue.")
            with suppress(InherituneError):  # a full disk must not hide the first error
                record.end_with(error)
            raise error
        except BaseException as error:
            code = MachineError.exit_code if isinstance(error, OSError) else 1
            with suppress(InherituneError):
                record.end("failed", code, f"{type(error).__name__}: {first_line(error)}")
            raise
        code = NOT_MATCHED_EXIT_CODE if missed(result) else 0
        record.end("done", code)
        return result, code


class _StartRecord:
    """The entry of one start in run.json: written at its beginning, completed or undone at its end.

    Raises:
        RecipeError: The directory belongs to another command.
    """

    def __init__(
        self,
        run: Run,
        recipe: RecipeFile,
        start: Start,
        allowed: Collection[str],
        processes: Processes,
    ) -> None:
        self._run, self._recipe, self._checkpoint = run, recipe, start.checkpoint
        self._began = time.monotonic()
        self._metrics_time = _metrics_time(start.checkpoint)
        self._content = run.read()
        self._before = before = RunRecord.model_validate(self._content)
        _refuse_other_command(run.root, before, start.command)

        # --- remember the files that a refused start must leave as they were ---
        paths = (run.recipe_file, run.pin)
        self._files = {path: path.read_bytes() for path in paths if path.exists()}

        # --- write what was started, by what, on what ---
        if recipe.text:
            write_bytes(run.recipe_file, recipe.text.encode())
        record_start(run, before, start.command, recipe, processes.size, allowed)

    def has_trained(self) -> bool:
        """Whether the training of the named checkpoint has written rows since the start."""
        return _metrics_time(self._checkpoint) != self._metrics_time

    def end(self, status: str, exit_code: int, error: str | None = None) -> None:
        """Complete the entry."""
        seconds = (self._before.seconds or 0.0) + time.monotonic() - self._began
        record_end(self._run, status, exit_code, seconds, error)

    def end_with(self, error: InherituneError) -> None:
        """Record an error, or restore everything where it only refused this start."""
        if not self._is_refusal(error):
            status = "interrupted" if error.exit_code == Interrupted.exit_code else "failed"
            self.end(status, error.exit_code, str(error))
            return
        if self._recipe.text and self._run.recipe_file not in self._files:
            self._run.recipe_file.unlink()
        for path, content in self._files.items():
            write_bytes(path, content)
        write_json(self._run.record_file, self._content)

    def _is_refusal(self, error: InherituneError) -> bool:
        """Whether a run that was there before must stay as it was recorded."""
        if self._before.result or self._before.is_by_workers:
            return error.exit_code in _REFUSALS
        # Unfinished, but started: the recipe that it was started with is the one that continues.
        was_started = self._before.status and self._before.exit_code != RecipeError.exit_code
        return bool(was_started) and isinstance(error, RecipeError)


def _metrics_time(checkpoint: Path | None) -> int | None:
    """When the rows beside a checkpoint were last written, ns."""
    if checkpoint is None:
        return None
    metrics = checkpoint.resolve().parent.parent / "metrics.jsonl"
    return metrics.stat().st_mtime_ns if metrics.exists() else None


def _refuse_other_command(root: Path, before: RunRecord, command: str) -> None:
    if not before.started_at:
        return  # the directory is new, or no start came so far
    owner = before.command or RUN
    if owner != command:
        kinds = {RUN: "the run of a recipe", TRAIN: "a training without a recipe"}
        raise RecipeError(
            f"{escape(root)} holds {kinds.get(owner, 'something else')}, not {kinds[command]}.",
            "Name another directory.",
        )


def _with_log(path: Path, listener: Listener) -> Listener:
    """Wrap a listener to append the time and text of every message to a file."""

    def on_progress(progress: Progress) -> None:
        if progress.message:
            append_text(path, f"{utc_now()} {progress.task}: {mask(progress.message)}\n")
        listener(progress)

    return on_progress
