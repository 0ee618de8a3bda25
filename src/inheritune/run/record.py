"""Write run.json: at the start, at the end, and whenever a part of the result is known."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.recipe.load import RecipeFile
from inheritune.run.derive import Outcome
from inheritune.run.facts import reference_facts, reference_loss, round_rows
from inheritune.run.ledger import ledger, run_result, variant_rows
from inheritune.run.notes import run_notes
from inheritune.run_directory import Run
from inheritune.run_record.measurements import TournamentRecord
from inheritune.run_record.record import RUN, RunRecord
from inheritune.run_record.trainings import (
    Result,
    StartRecord,
    TokenFacts,
)
from inheritune.steps.family import family_rows
from inheritune.steps.gains import MeasuredGains
from inheritune.steps.growth import Growth
from inheritune.steps.result import TrainingResult
from inheritune.steps.selection import selection_record
from inheritune.system.environment import machine, utc_now, versions
from inheritune.system.secrets import mask


def record_start(
    run: Run,
    before: RunRecord,
    command: str,
    recipe: RecipeFile,
    processes: int,
    allowed: Collection[str],
    status: str = "running",
) -> None:
    """Record that a start of the run has begun.

    Args:
        before: The record before this start.
        command: ``RUN`` or ``TRAIN``.
        processes: Number of processes that share the work.
        allowed: Recipe keys that may differ from those the run was begun with.
        status: ``running``, or ``preparing`` where workers alone prepare the text.
    """
    here = _place(processes)
    last = before.model_dump(include=set(here), exclude_unset=True)
    earlier = [*(start.as_json() for start in before.earlier), *([last] if last else [])]
    different = [start for start in earlier if start != here]
    run.update(
        RunRecord(
            command=command,
            name=recipe.recipe.name,
            status=status,
            started_at=before.started_at or utc_now(),
            finished_at=None,
            exit_code=None,
            error=None,
            recipe=recipe.recipe.resolved(),
            origins=recipe.origins,
            scaled=recipe.scaled or None,
            versions=here["versions"],
            machine=here["machine"],
            processes=processes,
            earlier=[
                StartRecord.model_validate(start)
                for index, start in enumerate(different)
                if start not in different[:index]
            ],
            allowed_changes=sorted({*before.allowed_changes, *allowed}),
        )
    )


def _place(processes: int) -> dict[str, Any]:
    return {"versions": versions(), "machine": machine(), "processes": processes}


def record_worker(run: Run, recipe: RecipeFile) -> None:
    """Record where a worker prepares parts of the text, and by what; many may do so at once.

    A run that was begun keeps its state; one of workers alone is unfinished until they are.
    """
    before, here = RunRecord.model_validate(run.read()), _place(1)
    if not before.started_at:
        record_start(run, before, RUN, recipe, 1, (), status="preparing")
        return
    starts = [start.as_json() for start in before.earlier]
    if here not in [*starts, before.model_dump(include=set(here), exclude_unset=True)]:
        earlier = [StartRecord.model_validate(start) for start in [*starts, here]]
        run.update(RunRecord(earlier=earlier))


def record_workers_end(run: Run) -> None:
    """Record that the text is prepared, if nothing but workers has worked on the run."""
    if run.record().is_by_workers:
        record_end(run, "done", 0, 0.0)


def record_end(
    run: Run, status: str, exit_code: int, seconds: float, error: str | None = None
) -> None:
    """Record that a start of the run has ended.

    Args:
        status: ``done``, ``interrupted`` or ``failed``.
        seconds: Wall-clock seconds of all starts together.
    """
    run.update(
        RunRecord(
            status=status,
            exit_code=exit_code,
            error=None if error is None else mask(error),
            finished_at=utc_now(),
            seconds=round(seconds, 1),
        )
    )


def record_result(
    run: Run, outcome: Outcome, recipe: RecipeFile, gains: MeasuredGains | None = None
) -> Result:
    """Record the outcome of a run, and return the result that `--json` prints."""
    reference, benchmark = outcome.reference, outcome.benchmark
    result = run_result(outcome, recipe.recipe, run.root, run.report / "index.html", gains)
    scaled = [recipe.scaled] if recipe.scaled else []
    trainings = [*outcome.rounds, *outcome.controls]
    selection = selection_record(recipe.recipe, reference, trainings)
    sections: dict[str, Any] = {} if selection is None else {"selection": selection}
    if reference.tournament is not None:
        sections["tournament"] = TournamentRecord.model_validate(reference.tournament)
    if outcome.patched:
        rounds, facts = outcome.rounds, reference.facts
        sections["family"] = family_rows(recipe.recipe, facts, rounds, outcome.patched)
    # All of them: beyond the recipe's limits lie the ways on after a miss.
    first = outcome.growth.sizes[0]
    sizes = Growth.of(recipe.recipe, reference.model, first, reference.layers).sizes
    run.update(
        RunRecord(
            settings=outcome.target.settings,
            reference=reference_facts(reference).model_copy(update={"safe_layers": [*sizes]}),
            tokens=TokenFacts.model_validate(outcome.tokens.summary()),
            benchmark=reference_loss(benchmark),
            rounds=round_rows(
                outcome.rounds, outcome.verdicts, recipe.recipe.grow.match, outcome.target
            ),
            variants=variant_rows(outcome),
            ledger=ledger(outcome, recipe.recipe.cost, gains),
            notes=[*scaled, *run_notes(outcome, recipe.recipe)],
            result=result,
            **sections,
        )
    )
    return result


def record_training(
    run: Run, training: TrainingResult, tokens: TokenDirectory, result: Mapping[str, Any]
) -> None:
    """Record the result of a training without a recipe, as `train --json` prints it."""
    run.update(
        RunRecord(
            settings=training.settings,
            tokens=TokenFacts.model_validate(tokens.summary()),
            result=Result.model_validate(result),
        )
    )


def add_section(run: Run, name: str, section: Any, notes: Sequence[str] = ()) -> None:
    """Add a section of run.json that is known after the result, and notes on it."""
    notes = [*run.record().notes, *notes]
    run.update(RunRecord.model_validate({name: section, "notes": notes}))
