"""Execute a recipe in a run directory: derive the target, look at the models, write the report."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inheritune.errors import InherituneError
from inheritune.publishing.card import write_card
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.reporting.page import read_report, write_report
from inheritune.run.derive import Outcome, derive
from inheritune.run.record import add_section, record_result
from inheritune.run.session import Start, carry_out
from inheritune.run.stages import Stages
from inheritune.run_directory import Run
from inheritune.run_record.record import RUN, RunRecord
from inheritune.run_record.trainings import GAINS_STAGE, Result
from inheritune.steps.analysis import analyze_run
from inheritune.steps.controls import continue_texts
from inheritune.steps.gains import gains_of
from inheritune.steps.job import Job
from inheritune.steps.repaired_start import remove_shared
from inheritune.steps.tasks import RunModel, ask_tasks, asked_at, check_tasks, snapshot_models
from inheritune.system.progress import Listener, Progress, silent
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
