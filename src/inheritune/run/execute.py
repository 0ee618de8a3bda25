"""Carry a recipe out in a run directory, and keep the record of it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from inheritune.data.import_tokens import FlatFiles
from inheritune.errors import NOT_MATCHED_EXIT_CODE, InherituneError, RecipeError
from inheritune.model_files.card import reference_fields
from inheritune.publishing.card import write_card
from inheritune.recipe.load import RecipeFile
from inheritune.reporting.page import write_report
from inheritune.run.derive import Outcome, derive
from inheritune.run.ledger import ledger, notes, result, variant_rows
from inheritune.run.session import Begin, carry_out
from inheritune.run_directory import RUN, Run
from inheritune.steps.analysis import analyze_run, asks_for_ranks, ranked
from inheritune.steps.controls import continue_texts, train_variant
from inheritune.steps.growth import Growth, first_layers
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.job import Job
from inheritune.steps.reference import measure_benchmark, open_reference, tokenizer_home
from inheritune.steps.resume import checkpoint_for
from inheritune.steps.tasks import Examined, ask_tasks, asked_at, check_tasks, moments_in
from inheritune.steps.tokens import import_flat_tokens, prepare_tokens
from inheritune.steps.trainings import TrainingSpec, depth_of, specs_for
from inheritune.system.progress import Listener, Progress, silent

__all__ = ["execute", "prepare_only", "train_only"]


def execute(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener = silent,
    missed_exit_code: int = NOT_MATCHED_EXIT_CODE,
    allowed: Collection[str] = (),
    checkpoint: Path | None = None,
) -> tuple[dict[str, Any], int]:
    """Do the whole method, or what is left of it, and write the report.

    Args:
        recipe: What to do.
        root: The run's directory; an unfinished run in it is continued.
        on_progress: Told what goes on.
        missed_exit_code: What the process ends with where growing was asked for and the
            benchmark was not matched.
        allowed: Recipe keys that may differ from what the run was begun with; recorded.
        checkpoint: Of the training that is not finished, to go on from; None: the newest.

    Returns:
        The result, as run.json keeps it, and the exit code. Of several processes, all but the
        first have no result.

    Raises:
        InherituneError: It could not be done; the record says why, and what was done stays.
    """

    def work(job: Job) -> tuple[dict[str, Any], int]:
        if "result" not in job.run.read():  # afterwards, what was trained stands
            check_tasks(job)
        outcome = derive(job)
        final = result(outcome, job.recipe, root, job.run.report / "index.html")
        missed = final["outcome"] == "not_matched" and recipe.recipe.grow.add > 0
        findings = _findings(outcome, job)
        findings["notes"] = [*([recipe.scaled] if recipe.scaled else []), *findings["notes"]]
        job.run.update(**findings, result=final)
        _look_inside(job, outcome)
        try:
            job.run.update(samples=continue_texts(job, _models(outcome, job.run)))
        except InherituneError:
            raise
        except Exception as error:
            # Samples are an extra: whatever generation trips over, the result stands.
            said = f"none: {type(error).__name__}: {str(error)[:200]}"
            job.on_progress(Progress("samples", message=said))
        _examine(outcome, job)
        return final, missed_exit_code if missed else 0

    final, code = carry_out(recipe, root, on_progress, work, Begin(RUN, allowed, checkpoint))
    if final:
        write_report(root)
        write_card(root)
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

    return carry_out(recipe, root, on_progress, work)[0]


def train_only(
    recipe: RecipeFile,
    root: Path,
    variant: str | None = None,
    layers: int | None = None,
    on_progress: Listener = silent,
    allowed: Collection[str] = (),
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Train one variant at one size and stop.

    Args:
        recipe: What to do.
        root: The run's directory.
        variant: Its name in the recipe; None: the target.
        layers: How many it has; None: what the recipe says, or as many as the target begins with.
        on_progress: Told what goes on.
        allowed: Recipe keys that may differ from what the run was begun with; recorded.
        checkpoint: Of the training that is not finished, to go on from; None: the newest.

    Returns:
        The trial, as run.json keeps it; of several processes, all but the first have none.

    Raises:
        RecipeError: There is no such variant, or its tokens depend on the other variants.
    """

    def work(job: Job) -> tuple[dict[str, Any], int]:
        plan, name = job.recipe, variant or job.recipe.target
        if name not in plan.variants:
            known = ", ".join(plan.variants)
            raise RecipeError(f"the recipe has no variant {name!r}.", f"Choose one of: {known}.")
        tokens_wanted = plan.tokens_of(name)
        if tokens_wanted is None:
            raise RecipeError(
                f"variants.{name}.tokens is {plan.variants[name].tokens}, which only a whole run "
                "knows.",
                "Use: inheritune run.",
            )
        if plan.variants[name].start == "grown":
            raise RecipeError(
                f"variants.{name} goes on from the rounds of {plan.target}.", "Use: inheritune run."
            )
        reference = open_reference(job)
        if asks_for_ranks(plan):
            prepared = prepare_tokens(job, reference.model.path)
            reference = ranked(job, reference, prepared)
        first, most = first_layers(plan, reference)
        growth = Growth.of(plan, reference.model, first, most)
        most = most if name == plan.target else reference.layers
        count = layers or depth_of(plan.variants[name], reference.layers, growth.sizes[0])
        if count > most:
            raise RecipeError(f"--layers is {count}.", f"Choose between 1 and {most}.")
        check_starts(
            plan, reference.model, [count], only=name, layers_by_rank=reference.layers_by_rank
        )
        arms = specs_for(
            plan, name, reference.layers, count, tokens_wanted, reference.layers_by_rank
        )
        checkpoint_for(job, _next_folder(job, arms))  # or is refused before anything is done
        tokens = prepare_tokens(job, reference.model.path)
        benchmark = measure_benchmark(job, reference, tokens)
        for arm in arms:
            trial = train_variant(job, arm, reference, tokens, benchmark)
        return trial.summary() | {"model": str(root / trial.path / "model")}, 0

    return carry_out(recipe, root, on_progress, work, Begin(RUN, allowed, checkpoint))[0]


def _look_inside(job: Job, outcome: Outcome) -> None:
    target = job.run.root / outcome.target.path / "model"
    analysis, said = analyze_run(job, outcome.reference, outcome.tokens, target)
    kept = job.run.read().get("notes", [])
    job.run.update(analysis=analysis, notes=[*kept, *said])


def _next_folder(job: Job, arms: Sequence[TrainingSpec]) -> Path:
    folders = [arm.folder_in(job.run) for arm in arms]
    return next((f for f in folders if not (f / "result.json").exists()), folders[-1])


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
            "taken_from": reference.taken_from,
            "curve": reference.training.get("curve", []),
            "card": reference_fields(reference.model),
        },
        "tokens": outcome.tokens.summary(),
        "benchmark": {
            "val_loss": benchmark.val_loss,
            "val_loss_se": benchmark.val_loss_se,
            "windows": len(benchmark.windows),
            "borrowed": benchmark.borrowed,
            "bits_per_byte": benchmark.bits_per_byte,
        },
        "rounds": [
            trial.summary()
            | {"round": number, "outcome": verdict, "is_target": trial is outcome.target}
            for number, (trial, verdict) in enumerate(
                zip(outcome.rounds, outcome.verdicts, strict=True), 1
            )
        ],
        "variants": variant_rows(outcome),
        "ledger": ledger(outcome, job.recipe.cost),
        "notes": notes(outcome, job.recipe),
    }


def _examine(outcome: Outcome, job: Job) -> None:
    """Ask the recipe's tasks; the result stands already, whatever comes of it."""
    reference, target = outcome.reference, outcome.target
    models = [
        Examined(
            "reference",
            "reference",
            reference.layers,
            reference.training.get("tokens"),
            reference.model.path,
        )
    ]
    moments: list[Examined] = []
    late: list[str] = []
    for trial in [target, *outcome.controls]:
        role = "target" if trial is target else "control"
        folder = job.run.root / trial.path
        ended = Examined(trial.name, role, trial.layers, trial.tokens, folder / "model")
        models.append(ended)
        wanted = asked_at(job.recipe, trial.tokens)
        kept = moments_in(folder, ended, wanted)
        moments += kept
        if len(kept) < len(wanted):
            late.append(f"{trial.name}, {trial.layers} layers")
    evaluation, said = ask_tasks(job, models, moments)
    if evaluation is not None:
        if late:
            said.append(
                f"Not all tokens of evaluate.at were asked after of {'; '.join(late)}: it was "
                "trained before the recipe named them."
            )
        # With what scaling and the analysis have added.
        told = [*job.run.read().get("notes", []), *said]
        job.run.update(evaluation=evaluation, notes=told)


def _models(outcome: Outcome, run: Run) -> dict[str, Path]:
    trials = [outcome.target, *outcome.controls]
    return {"reference": outcome.reference.model.path} | {
        trial.name: run.root / trial.path / "model" for trial in trials
    }
