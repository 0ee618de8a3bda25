"""Execute a recipe in a run directory: the whole run, its tokens alone, or one training alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inheritune.data.import_tokens import FlatFiles
from inheritune.data.token_parts import TokenParts, Worker
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import InherituneError, RecipeError
from inheritune.publishing.card import write_card
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.reporting.page import read_report, write_report
from inheritune.run.derive import Outcome, derive
from inheritune.run.record import (
    add_section,
    record_result,
    record_worker,
    record_workers_end,
)
from inheritune.run.session import Start, carry_out
from inheritune.run.stages import Stages
from inheritune.run_directory import Run
from inheritune.run_record.record import RUN, RunRecord
from inheritune.run_record.trainings import GAINS_STAGE, Result
from inheritune.steps.analysis import analyze_run, asks_for_measurements, with_measurements
from inheritune.steps.benchmark import measure_benchmark
from inheritune.steps.controls import continue_texts, train_variant
from inheritune.steps.gains import gains_of
from inheritune.steps.growth import Growth, first_layers
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference, open_reference, tokenizer_home
from inheritune.steps.repaired_start import remove_shared
from inheritune.steps.result import TrainedVariant
from inheritune.steps.resume import checkpoint_for
from inheritune.steps.tasks import RunModel, ask_tasks, asked_at, check_tasks, snapshot_models
from inheritune.steps.tokens import import_flat_tokens, prepare_token_parts, prepare_tokens
from inheritune.steps.training_spec import TrainingSpec, layers_of, specs_for
from inheritune.system.locks import patiently
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.refusals import missing_directories, removed_if_refused
from inheritune.system.rows import Rows
from inheritune.system.signals import catch_signals


@dataclass(frozen=True)
class RunResult(Rows):
    """The result of a run.

    Attributes:
        target: Directory of the final model.
        layers: Its transformer layers.
        val_loss: Its loss on the held-out tokens, nats per token.
        reference_loss: The reference's loss on the same tokens.
        difference: val_loss - reference_loss, mean over the windows that both were measured on.
        difference_se: Standard error of the difference over windows; None for a single window.
        verdict: ``"matched"``, ``"matched_within_noise"`` or ``"not_matched"``.
        is_missed: Whether the target was to grow until it matched, and did not match.
        report: The report page.
        summary: ``result`` of run.json: what ``inheritune run --json`` prints.
        run: The run's directory.
    """

    target: Path
    layers: int
    val_loss: float
    reference_loss: float
    difference: float
    difference_se: float | None
    verdict: str
    is_missed: bool
    report: Path
    summary: dict[str, Any]
    run: Path

    @property
    def record(self) -> RunRecord:
        """Everything that run.json holds."""
        return Run(self.run).record()

    @property
    def matched(self) -> bool:
        """Whether the target keeps to all criteria of the recipe's `grow.match`."""
        return self.verdict == "matched"

    def rows(self) -> list[dict[str, Any]]:
        """A row for the reference, the target and every control."""
        return [dict(row) for row in self.summary["variants"]]


def execute(
    recipe: Recipe | RecipeFile,
    root: Path,
    on_progress: Listener = silent,
    *,
    must_match: bool = True,
    allowed: Collection[str] = (),
    checkpoint: Path | None = None,
) -> RunResult | None:
    """Derive a target by a recipe, or continue where the run was stopped, and write the report.

    Ctrl-C, SIGTERM and SIGUSR1 stop the run where it can be continued.

    Args:
        recipe: A recipe object, or one read from a file, whose text is then kept in the run.
        root: The run's directory, usually ``runs/<name>``; an unfinished run in it is continued.
        on_progress: Called with every event of the run.
        must_match: Whether a target that may grow and does not match counts as missed.
        allowed: Recipe keys that may differ from those the run began with; recorded.
        checkpoint: Checkpoint from which the unfinished training continues; None: the newest.

    Returns:
        The result; None in all processes but the first.

    Raises:
        InherituneError: The run failed; run.json says why, and completed steps stay.
        Interrupted: A signal asked to stop; the same call continues.
    """
    file = recipe if isinstance(recipe, RecipeFile) else RecipeFile(None, "", recipe, {})
    must_match = must_match and file.recipe.grow.add > 0

    def work(job: Job) -> RunResult:
        # --- derive the target; nothing below can fail the run any more ---
        if "result" not in job.run.read():  # a result stands, whatever its tasks have become
            check_tasks(job)
        stages = Stages(job)
        outcome = derive(job, stages)
        record_result(job.run, outcome, file)
        remove_shared(job.run)

        # --- look at the models: gains, attention, samples, tasks ---
        stages.begin(GAINS_STAGE)
        summary = _measure_gains(job, outcome, file).as_json()
        stages.begin("attention")
        _analyze(job, outcome)
        stages.begin("samples")
        _continue_prompts(job, outcome)
        stages.begin("tasks")
        _ask_tasks(job, outcome)
        stages.end()
        return RunResult(
            target=job.run.target,
            layers=outcome.target.layers,
            val_loss=outcome.target.val_loss,
            reference_loss=outcome.benchmark.val_loss,
            difference=outcome.target.difference,
            difference_se=outcome.target.difference_se,
            verdict=outcome.verdict,
            is_missed=must_match and outcome.verdict == "not_matched",
            report=job.run.report / "index.html",
            summary=summary,
            run=root,
        )

    start = Start(RUN, allowed, checkpoint)
    run_result = carry_out(file, root, work, on_progress, start, lambda result: result.is_missed)
    if run_result is not None:
        with catch_signals() as stop:
            report = read_report(root)
            write_report(root, report, partial(stop.check, "only the report is missing"))
            write_card(root, report.card_figures)
    return run_result


def prepare_only(
    recipe: RecipeFile,
    root: Path,
    on_progress: Listener = silent,
    files: FlatFiles | None = None,
    tokenizer: Path | None = None,
) -> TokenDirectory:
    """Prepare a recipe's tokens and stop.

    Args:
        recipe: Names the text and the reference whose tokenizer is used.
        files: Token ids of another program, imported instead of the recipe's text.
        tokenizer: Directory of the tokenizer that made these ids; None: the reference's.
    """

    def work(job: Job) -> TokenDirectory:
        home = tokenizer_home(job)
        if files is not None:
            import_flat_tokens(job, tokenizer or home, files)
        return prepare_tokens(job, home)

    tokens = carry_out(recipe, root, work, on_progress)
    assert tokens is not None  # tokens are prepared by one process
    return tokens


def prepare_one_worker(
    recipe: RecipeFile, root: Path, worker: Worker, on_progress: Listener = silent
) -> TokenParts:
    """Prepare one worker's parts of a recipe's tokens, beside others in the same run directory.

    run.json tells of each machine and version that took part.
    """
    new = missing_directories(root)
    with catch_signals() as stop, removed_if_refused(new, Run(root).own_files):
        wait = patiently(root, on_progress, partial(stop.check, "nothing is prepared yet"))
        with Run.hold(root, wait) as run:  # one after the other: they may fetch the reference
            job = Job(recipe.recipe, run, stop, on_progress)
            home = tokenizer_home(job)
            record_worker(run, recipe)
        parts = prepare_token_parts(job, home, worker)
        if parts.tokens is not None:
            with Run.hold(root, wait) as run:
                record_workers_end(run)
        return parts


def train_only(
    recipe: RecipeFile,
    root: Path,
    variant: str | None = None,
    layers: int | None = None,
    on_progress: Listener = silent,
    allowed: Collection[str] = (),
    checkpoint: Path | None = None,
) -> TrainedVariant | None:
    """Train one variant at one size and stop; a later run of the recipe takes it over.

    Args:
        variant: A name in the recipe; None: the target.
        layers: None: as many as the recipe says, or as the target begins with.
        allowed: Recipe keys that may differ from those the run began with; recorded.
        checkpoint: Checkpoint from which the unfinished training continues; None: the newest.

    Returns:
        The result; None in all processes but the first.

    Raises:
        RecipeError: The recipe has no such variant, or its tokens depend on the other variants.
    """

    def work(job: Job) -> TrainedVariant:
        plan, name = job.recipe, variant or job.recipe.target_name
        num_tokens = _tokens_of(plan, name)

        # --- the reference, and with how many layers ---
        reference = open_reference(job)
        if asks_for_measurements(plan):
            tokens = prepare_tokens(job, reference.model.path)
            reference = with_measurements(job, reference, tokens)
        num_layers = _layers_of(plan, name, reference, layers)
        check_starts(plan, reference.model, [num_layers], only=name, facts=reference.facts)
        specs = specs_for(plan, name, reference.facts, num_layers, num_tokens)
        checkpoint_for(job, _next_directory(job, specs))  # refuses a wrong --from before any work

        # --- train; stacking has two trainings ---
        tokens = prepare_tokens(job, reference.model.path)
        benchmark = measure_benchmark(job, reference, tokens)
        results = [train_variant(job, spec, reference, tokens, benchmark) for spec in specs]
        return TrainedVariant(root / results[-1].path / "model", results[-1])

    return carry_out(recipe, root, work, on_progress, Start(RUN, allowed, checkpoint))


def _tokens_of(recipe: Recipe, name: str) -> int:
    if name not in recipe.variants:
        names = ", ".join(recipe.variants)
        raise RecipeError(f"the recipe has no variant {name!r}.", f"Choose one of: {names}.")
    tokens = recipe.tokens_of(name)
    if tokens is None:
        raise RecipeError(
            f"variants.{name}.tokens is {recipe.variants[name].tokens}, which only a whole run "
            "knows.",
            "Use: inheritune run.",
        )
    if recipe.variants[name].start == "grown":
        raise RecipeError(
            f"variants.{name} continues from the rounds of {recipe.target_name}.",
            "Use: inheritune run.",
        )
    return tokens


def _layers_of(recipe: Recipe, name: str, reference: Reference, layers: int | None) -> int:
    first, most = first_layers(recipe, reference)
    growth = Growth.of(recipe, reference.model, first, most)
    limit = most if name == recipe.target_name else reference.layers
    count = layers or layers_of(recipe.variants[name], reference.layers, growth.sizes[0])
    if count > limit:
        raise RecipeError(f"--layers is {count}.", f"Choose between 1 and {limit}.")
    return count


def _next_directory(job: Job, specs: Sequence[TrainingSpec]) -> Path:
    directories = [spec.directory_in(job.run) for spec in specs]
    return next(
        (path for path in directories if not (path / "result.json").exists()), directories[-1]
    )


def _measure_gains(job: Job, outcome: Outcome, file: RecipeFile) -> Result:
    gains, more = gains_of(job, outcome.reference, outcome.target, outcome.tokens)
    result = record_result(job.run, outcome, file, gains)
    add_section(job.run, "gains", None if gains is None else gains.record, more)
    return result


def _analyze(job: Job, outcome: Outcome) -> None:
    model = job.run.root / outcome.target.path / "model"
    analysis, more = analyze_run(job, outcome.reference, outcome.tokens, model)
    add_section(job.run, "analysis", analysis, more)


def _continue_prompts(job: Job, outcome: Outcome) -> None:
    results = [outcome.target, *outcome.controls]
    models = {"reference": outcome.reference.model.path}
    models |= {result.name: job.run.root / result.path / "model" for result in results}
    try:
        add_section(job.run, "samples", continue_texts(job, models))
    except InherituneError:
        raise
    except Exception as error:
        # Samples are an extra: whatever generation trips over, the result stands.
        message = f"none: {type(error).__name__}: {str(error)[:200]}"
        job.on_progress(Progress("samples", message=message))


def _ask_tasks(job: Job, outcome: Outcome) -> None:
    # --- the models: the reference, the ends of trainings, and snapshots of them on the way ---
    first, trained_tokens = outcome.reference, outcome.reference.training.get("tokens")
    models = [RunModel("reference", "reference", first.layers, trained_tokens, first.model.path)]
    snapshots: list[RunModel] = []
    incomplete: list[str] = []
    for result in [outcome.target, *outcome.controls]:
        role = "target" if result is outcome.target else "control"
        folder = job.run.root / result.path
        models.append(RunModel(result.name, role, result.layers, result.tokens, folder / "model"))
        token_counts = asked_at(job.recipe, result.tokens)
        own_snapshots = snapshot_models(folder, models[-1], token_counts)
        snapshots += own_snapshots
        if len(own_snapshots) < len(token_counts):
            incomplete.append(f"{result.name}, {result.layers} layers")

    evaluation, more = ask_tasks(job, models, snapshots)
    if evaluation is None:
        return
    if incomplete:
        more.append(
            f"Not all tokens of evaluate.at were asked after of {'; '.join(incomplete)}: it was "
            "trained before the recipe named them."
        )
    add_section(job.run, "evaluation", evaluation, more)
