"""Continue the pretraining of any model directory on any token directory, without a recipe."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.data.tokenizer import embedding_rows, open_tokenizer
from inheritune.data.tokens import TokenDirectory, check_budget, check_length, open_tokens
from inheritune.errors import DataError, RecipeError
from inheritune.model_files.config import max_positions
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.load import RecipeFile, made_recipe, read_sets
from inheritune.recipe.rules import LEAST_SEQUENCES, LONGEST_SEQUENCE, number, train_defaults
from inheritune.recipe.training import Train
from inheritune.recipe.yaml_tree import Tree, dotted
from inheritune.run.ledger import training_ledger
from inheritune.run.record import record_training
from inheritune.run.session import Start, carry_out
from inheritune.run_directory import Run
from inheritune.run_record.record import TRAIN
from inheritune.steps.benchmark import Benchmark, measure_benchmark
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference, open_reference
from inheritune.steps.reference_store import pinned_commit
from inheritune.steps.result import TrainingResult
from inheritune.steps.training import run_training
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.training_task import TrainingTask, published_dtype, training_inputs
from inheritune.surgery.class_check.language_model import refuse_no_language_model
from inheritune.system.progress import Listener, silent
from inheritune.system.rows import Rows
from inheritune.system.signals import catch_signals

_SECTIONS = ("train", "evaluate")
_KEYS = (("reference", "revision"), ("data", "allow_repeat"), ("target", "dtype"))


@dataclass(frozen=True)
class Pretraining:
    """A training that was planned.

    Attributes:
        recipe: All settings, in the form of a recipe.
        tokens: Training and validation tokens.
    """

    recipe: RecipeFile
    tokens: TokenDirectory


@dataclass(frozen=True)
class PretrainingResult(Rows):
    """The result of a training without a recipe: ``result`` of run.json, in the order it has there.

    Attributes:
        model: Directory of the trained model.
        layers: Transformer layers.
        params: Parameters, tied ones once.
        tokens: Training tokens, repeats counted.
        epochs: Passes over the training tokens.
        val_loss_before: Nats per token on the held-out tokens, before the training.
        val_loss: The same, after the training.
        val_loss_se: Standard error over windows.
        difference: val_loss - val_loss_before.
        difference_se: Its standard error over windows.
        flops: Training and validations.
        seconds: Wall-clock time of training and validations.
        restarts: How often the training was continued after a stop.
        skipped: Optimizer steps skipped because a value was not finite.
        notes: Messages of the training.
        ledger: One entry for each cost.
    """

    model: str
    layers: int
    params: int
    tokens: int
    epochs: float
    val_loss_before: float
    val_loss: float
    val_loss_se: float | None
    difference: float
    difference_se: float | None
    flops: float
    seconds: float
    restarts: int
    skipped: int
    notes: list[str]
    ledger: list[dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        """One row: size, losses and cost."""
        return [{k: v for k, v in asdict(self).items() if k not in ("notes", "ledger")}]


def plan_pretraining(
    model: str, tokens: Path, out: Path, sets: Sequence[str] = (), processes: int = 1
) -> Pretraining:
    """Choose every setting that is not given, by the model and the tokens; nothing is written.

    Defaults: sequences of 1,024 tokens, or fewer where the model has fewer positions or a split
    holds less than 8 sequences; one epoch; steps of 393,216 tokens, or fewer so that there are 200
    steps; a warm-up over 5 % of the tokens. All other defaults are those of a recipe.

    Args:
        model: Local directory, Hub id, or ``embedded:demo``.
        tokens: A directory written by `prepare`.
        out: Directory of the training. Where it pins a commit of a Hub model, that one is opened.
        sets: Overrides of `train`, `evaluate`, ``data.allow_repeat`` and ``reference.revision``.
        processes: Number of processes; it decides the default of ``train.micro_batch`` only.

    Raises:
        RecipeError: An override is malformed, or of another key.
        SourceError: The model cannot be opened.
        DataError: The tokens are broken, too few, or of another tokenizer than the model's.
        MachineError: The Hub cannot be reached.
    """
    # --- open tokens and model ---
    tree = read_sets(sets)
    values: dict[str, Any] = tree.value
    _refuse_other_keys(tree)
    revision = values.get("reference", {}).get("revision")
    opened_tokens = open_tokens(tokens)
    commit = pinned_commit(Run(out), model, revision) or revision
    with catch_signals() as stop:
        opened_model = open_model(model, commit, stop=stop)
    _refuse_other_ids(opened_tokens, opened_model)
    refuse_no_language_model(opened_model)

    # --- complete the overrides to a recipe ---
    train = values.get("train", {})
    values["train"] = _train_section(train, opened_tokens, opened_model, processes)
    values["name"] = "train"
    values["reference"] = {"model": model} | values.get("reference", {})
    values["data"] = {"source": str(tokens)} | values.get("data", {})
    values["grow"] = {"add": 0}
    values["variants"] = {"train": {"start": "inherit"}}
    recipe = made_recipe(tree)
    section, data = recipe.recipe.train, recipe.recipe.data
    train_ids, val_ids = opened_tokens.train.num_ids, opened_tokens.val.num_ids
    check_length(train_ids, val_ids, section.seq_len, data)
    check_budget(
        opened_tokens, section.tokens, section.seq_len, data.allow_repeat, section.batch_tokens
    )
    if section.only is not None:
        from inheritune.training.models import describe_config

        describe_config(opened_model.config, section.seq_len, section.only)  # refuses other names
    return Pretraining(recipe, opened_tokens)


def pretrain(
    plan: Pretraining,
    out: Path,
    on_progress: Listener = silent,
    allowed: Collection[str] = (),
    checkpoint: Path | None = None,
) -> PretrainingResult | None:
    """Train a model further, and measure it before and after; continues where it was stopped.

    Args:
        out: Receives ``model/``, run.json, metrics.jsonl and checkpoints; an unfinished training in
            it is continued.
        allowed: Keys that may differ from those the training began with; recorded.
        checkpoint: Checkpoint from which the training continues; None: the newest complete one.

    Returns:
        The result; None in all processes but the first.

    Raises:
        RecipeError: ``out`` holds something else, or a training of another model, of other tokens
            or with other settings.
        InherituneError: The training failed; run.json says why, and completed work stays.
    """

    def work(job: Job) -> PretrainingResult:
        reference = open_reference(job)
        before = measure_benchmark(job, reference, plan.tokens)
        trained = _train(job, reference, plan.tokens, before)
        final = PretrainingResult(
            model=str(out / "model"),
            layers=trained.layers,
            params=trained.params,
            tokens=trained.tokens,
            epochs=trained.epochs,
            val_loss_before=before.val_loss,
            val_loss=trained.val_loss,
            val_loss_se=trained.val_loss_se,
            difference=trained.difference,
            difference_se=trained.difference_se,
            flops=before.flops + trained.flops,
            seconds=round(before.seconds + trained.seconds, 1),
            restarts=trained.restarts,
            skipped=trained.skipped,
            notes=trained.notes,
            ledger=[entry.as_json() for entry in training_ledger(before, trained)],
        )
        record_training(job.run, trained, plan.tokens, asdict(final))
        return final

    return carry_out(plan.recipe, out, work, on_progress, Start(TRAIN, allowed, checkpoint))


def _train(
    job: Job, reference: Reference, tokens: TokenDirectory, before: Benchmark
) -> TrainingResult:
    num_tokens, only = job.recipe.train.tokens, job.recipe.train.only
    # Weights are read where they lie: a copy of the model beside its checkpoints has no use.
    model = str(reference.model.path.resolve())
    spec = TrainingSpec("train", "trained", reference.layers, num_tokens, model=model, only=only)
    inputs = training_inputs(job, tokens, spec) | {
        "reference": reference.model.digest,
        "variant_tokens": num_tokens,
    }
    dtype = published_dtype(job.recipe, reference.model)
    task = TrainingTask(job, spec, job.run.root, tokens, inputs, dtype)
    return run_training(task, before.windows)


def _refuse_other_keys(tree: Tree) -> None:
    for path, place in tree.places.items():
        is_section = len(path) == 1 and isinstance(tree.value.get(path[0]), dict)
        is_key = path[:2] in _KEYS or (len(path) > 1 and path[0] in _SECTIONS)
        if not is_section and not is_key:
            keys = [f"{name}.*" for name in _SECTIONS] + [dotted(key) for key in _KEYS]
            raise RecipeError(
                f"{place.where}: {dotted(path)} has no meaning in a training without a recipe.",
                f"Keys are {', '.join(keys)}.",
            )
    revision = tree.value.get("reference", {}).get("revision")
    if revision is not None and not isinstance(revision, str):
        raise RecipeError(f"reference.revision is {revision!r}.", "Write it as text, in quotes.")


def _refuse_other_ids(tokens: TokenDirectory, model: ModelDirectory) -> None:
    tokenizer = open_tokenizer(model.path)
    rows = embedding_rows(model.path, tokenizer)
    largest = max(entry["max_id"] for entry in tokens.manifest["files"])
    if largest >= rows:
        raise DataError(
            f"the tokens in {tokens.path} have ids up to {largest}, the embedding of {model.name} "
            f"has {rows} rows.",
            "Prepare them with the tokenizer of this model.",
        )
    digest = tokens.manifest["tokenizer"].get("sha256")
    if digest != tokenizer.sha256:
        raise DataError(
            f"the tokens in {tokens.path} were made by tokenizer {str(digest)[:12]}, {model.name} "
            f"has {tokenizer.sha256[:12]}.",
            "Prepare them with the tokenizer of this model.",
        )


# -- defaults


def _train_section(
    given: dict[str, Any], tokens: TokenDirectory, model: ModelDirectory, processes: int
) -> dict[str, Any]:
    """Complete the section `train`; a value that is no number is left for the recipe to refuse."""
    # --- one epoch of sequences that the model and both splits hold ---
    seq_len = number(given, "seq_len") or _sequence_length(tokens, model)
    epoch = tokens.train.num_samples(seq_len) * seq_len
    num_tokens = number(given, "tokens") or max(1, epoch)

    # --- a learning rate below the default minimum lowers the minimum ---
    rate = given.get("learning_rate", Train.model_fields["learning_rate"].default)
    min_rate = Train.model_fields["min_learning_rate"].default
    return {
        "tokens": num_tokens,
        "seq_len": seq_len,
        **train_defaults(given, num_tokens, seq_len, processes),
        "min_learning_rate": min(min_rate, rate) if isinstance(rate, float) else min_rate,
    } | given


def _sequence_length(tokens: TokenDirectory, model: ModelDirectory) -> int:
    length = min(max_positions(model.config) or LONGEST_SEQUENCE, LONGEST_SEQUENCE)
    num_ids = min(tokens.train.num_ids, tokens.val.num_ids)
    least: int = 8  # of train.seq_len
    while length // 2 >= least and num_ids - 1 < LEAST_SEQUENCES * length:
        length //= 2
    return length
