"""Carry out one step of a recipe in a run directory: its tokens, or one training."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from inheritune.data.import_tokens import FlatFiles
from inheritune.data.token_parts import TokenParts, Worker
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import RecipeError
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.run.record import record_worker, record_workers_end
from inheritune.run.session import Start, carry_out
from inheritune.run_directory import Run
from inheritune.run_record.record import RUN
from inheritune.steps.analysis import asks_for_measurements, with_measurements
from inheritune.steps.benchmark import measure_benchmark
from inheritune.steps.controls import train_variant
from inheritune.steps.growth import Growth, first_layers
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference, open_reference, tokenizer_home
from inheritune.steps.result import TrainedVariant
from inheritune.steps.resume import checkpoint_for
from inheritune.steps.tokens import import_flat_tokens, prepare_token_parts, prepare_tokens
from inheritune.steps.training_spec import TrainingSpec, layers_of, specs_for
from inheritune.system.locks import patiently
from inheritune.system.progress import Listener, silent
from inheritune.system.refusals import missing_directories, removed_if_refused
from inheritune.system.signals import catch_signals


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
