"""Carry a recipe out in a run directory, and keep the record of it."""

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inheritune.accounting import ledger, notes, result, variant_rows
from inheritune.data.import_tokens import FlatFiles
from inheritune.derive import Outcome, derive, first_layers
from inheritune.durable import write_json
from inheritune.environment import machine, versions
from inheritune.errors import (
    NOT_MATCHED_EXIT_CODE,
    DataError,
    InherituneError,
    MachineError,
    RecipeError,
)
from inheritune.processes import ALONE, Processes
from inheritune.progress import Listener, Progress, silent
from inheritune.recipe_file import RecipeFile
from inheritune.report.page import write_report
from inheritune.run import Run
from inheritune.signals import catch_signals
from inheritune.steps.changes import allowed_inputs
from inheritune.steps.job import Job
from inheritune.steps.reference import measure_benchmark, open_reference, tokenizer_home
from inheritune.steps.tokens import import_flat_tokens, prepare_tokens
from inheritune.steps.training import Arm
from inheritune.steps.variants import continue_texts, train_arm
from inheritune.steps.workers import serve

__all__ = ["execute", "prepare_only", "train_only"]

_REFUSED = {RecipeError.exit_code, DataError.exit_code}


def execute(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener = silent,
    missed_exit_code: int = NOT_MATCHED_EXIT_CODE,
    allowed: Collection[str] = (),
) -> tuple[dict[str, Any], int]:
    """Do the whole method, or what is left of it, and write the report.

    Args:
        recipe: What to do.
        root: The run's directory; an unfinished run in it is continued.
        on_progress: Told what goes on.
        missed_exit_code: What the process ends with where growing was asked for and the
            benchmark was not matched.
        allowed: Recipe keys that may differ from what the run was begun with; recorded.

    Returns:
        The result, as run.json keeps it, and the exit code. Of several processes, all but the
        first have no result.

    Raises:
        InherituneError: It could not be done; the record says why, and what was done stays.
    """

    def work(job: Job) -> tuple[dict[str, Any], int]:
        outcome = derive(job)
        final = result(outcome, root, job.run.report / "index.html")
        missed = final["outcome"] == "not_matched" and recipe.recipe.grow.add > 0
        job.run.update(**_findings(outcome, job), result=final)
        try:
            job.run.update(samples=continue_texts(job, _models(outcome, job.run)))
        except InherituneError:
            raise
        except Exception as error:
            # Samples are an extra: whatever generation trips over, the result stands.
            said = f"none: {type(error).__name__}: {str(error)[:200]}"
            job.on_progress(Progress("samples", message=said))
        return final, missed_exit_code if missed else 0

    final, code = _shared(recipe, root, on_progress, work, allowed)
    if final:
        write_report(root)
    return final, code


def prepare_only(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener = silent,
    files: FlatFiles | None = None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Prepare a recipe's tokens and stop.

    Args:
        recipe: What to do.
        root: The run's directory.
        on_progress: Told what goes on.
        files: Ids of another program, taken instead of the recipe's text.
        tokenizer: Directory of the tokenizer that made them; None: the reference's.

    Returns:
        The summary of the token directory, and its path.
    """

    def work(job: Job) -> tuple[dict[str, Any], int]:
        home = tokenizer_home(job)
        if files is not None:
            import_flat_tokens(job, tokenizer or home, files)
        tokens = prepare_tokens(job, home)
        return tokens.summary() | {"path": str(tokens.path)}, 0

    return _shared(recipe, root, on_progress, work)[0]


def train_only(
    recipe: RecipeFile,
    root: Path,
    variant: str | None = None,
    layers: int | None = None,
    on_progress: Listener = silent,
) -> dict[str, Any]:
    """Train one variant at one size and stop.

    Args:
        recipe: What to do.
        root: The run's directory.
        variant: Its name in the recipe; None: the target.
        layers: How many it has; None: what the recipe says, or as many as the target begins with.
        on_progress: Told what goes on.

    Returns:
        The trial, as run.json keeps it.

    Raises:
        RecipeError: There is no such variant, or its tokens depend on the other variants.
    """

    def work(job: Job) -> tuple[dict[str, Any], int]:
        plan, name = job.recipe, variant or job.recipe.target
        if name not in plan.variants:
            known = ", ".join(plan.variants)
            raise RecipeError(f"the recipe has no variant {name!r}.", f"Choose one of: {known}.")
        tokens_wanted = plan.variants[name].tokens or plan.train.tokens
        if not isinstance(tokens_wanted, int):
            raise RecipeError(
                f"variants.{name}.tokens is {tokens_wanted}, which only a whole run knows.",
                "Use: inheritune run.",
            )
        reference = open_reference(job)
        first, most = first_layers(plan, reference)
        count = layers or plan.variants[name].layers or first
        if count > most:
            raise RecipeError(f"--layers is {count}.", f"Choose between 1 and {most}.")
        tokens = prepare_tokens(job, reference.model.path)
        benchmark = measure_benchmark(job, reference, tokens)
        arm = Arm(name, plan.variants[name].start, count, tokens_wanted)
        trial = train_arm(job, arm, reference, tokens, benchmark)
        return trial.summary() | {"model": str(root / trial.path / "model")}, 0

    return _shared(recipe, root, on_progress, work)[0]


def _shared(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener,
    work: Callable[[Job], tuple[dict[str, Any], int]],
    allowed: Collection[str] = (),
) -> tuple[dict[str, Any], int]:
    """The first process does the work and records it; others do their part of each training."""
    keys = allowed_inputs(recipe.recipe, allowed)
    if "WORLD_SIZE" not in os.environ:  # not started by torchrun, and torch is not needed yet
        return _recorded(recipe, root, on_progress, work, ALONE, keys)
    from inheritune.train.group import join
    from inheritune.train.parallel import my_share

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
            value, code = _recorded(recipe, root, on_progress, checked, processes, keys)
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
    work: Callable[[Job], tuple[dict[str, Any], int]],
    processes: Processes,
    allowed: frozenset[str],
) -> tuple[dict[str, Any], int]:
    run = Run.create(root)
    began = time.monotonic()
    with run.lock(), catch_signals() as stop:
        before = run.read()
        given = run.recipe_file.read_bytes() if run.recipe_file.exists() else b""
        run.recipe_file.write_text(recipe.text, encoding="utf-8")
        run.update(
            name=recipe.recipe.name,
            status="running",
            started_at=before.get("started_at") or _now(),
            finished_at=None,
            exit_code=None,
            error=None,
            recipe=recipe.recipe.resolved(),
            origins=recipe.origins,
            versions=versions(),
            machine=machine(),
            processes=processes.size,
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

        try:
            listener = _logged(run.log_file, on_progress)
            value, code = work(Job(recipe.recipe, run, stop, listener, processes, allowed))
        except InherituneError as error:
            with suppress(InherituneError):  # a full disk must not hide the first error
                if before.get("result") and error.exit_code in _REFUSED:
                    # The run is done and stays as it was recorded; only this start is refused.
                    run.recipe_file.write_bytes(given)
                    write_json(run.record_file, before)
                else:
                    status = "interrupted" if error.exit_code == 75 else "failed"
                    close(status, error.exit_code, str(error))
            raise
        except BaseException as error:
            code = MachineError.exit_code if isinstance(error, OSError) else 1
            with suppress(InherituneError):
                close("failed", code, f"{type(error).__name__}: {error}"[:500])
            raise
        close("done", code)
        return value, code


def _logged(path: Path, listener: Listener) -> Listener:
    """A listener that also keeps every event, with its time, in a file."""

    def listen(progress: Progress) -> None:
        if progress.message:
            with path.open("a", encoding="utf-8") as log:
                log.write(f"{_now()} {progress.task}: {progress.message}\n")
        listener(progress)

    return listen


def _findings(outcome: Outcome, job: Job) -> dict[str, Any]:
    reference, benchmark = outcome.reference, outcome.benchmark
    return {
        "settings": outcome.target.settings,
        "reference": {
            "model": reference.name,
            "layers": reference.layers,
            "params": reference.params,
            "revision": reference.model.revision,
            "digest": reference.model.digest,
            "trained_tokens": reference.training.get("tokens"),
            "trained_here": reference.trained_here,
            "curve": reference.training.get("curve", []),
        },
        "tokens": outcome.tokens.summary(),
        "benchmark": {
            "val_loss": benchmark.val_loss,
            "val_loss_se": benchmark.val_loss_se,
            "windows": len(benchmark.windows),
            "bits_per_byte": benchmark.bits_per_byte,
        },
        "rounds": [
            trial.summary() | {"round": number, "outcome": verdict}
            for number, (trial, verdict) in enumerate(
                zip(outcome.rounds, outcome.verdicts, strict=True), 1
            )
        ],
        "variants": variant_rows(outcome),
        "ledger": ledger(outcome),
        "notes": notes(outcome, job.recipe),
    }


def _models(outcome: Outcome, run: Run) -> dict[str, Path]:
    trials = [outcome.target, *outcome.controls]
    return {"reference": outcome.reference.model.path} | {
        trial.name: run.root / trial.path / "model" for trial in trials
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
