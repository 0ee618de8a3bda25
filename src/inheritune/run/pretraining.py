"""Continued pretraining of any model directory on any token directory, without a recipe."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import TokenDirectory, check_budget, check_length, open_tokens
from inheritune.errors import DataError, RecipeError
from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.load import RecipeFile, made_recipe, read_sets
from inheritune.recipe.schema import Train
from inheritune.recipe.values import parse_amount
from inheritune.recipe.yaml_tree import Tree, dotted
from inheritune.run.ledger import training_ledger
from inheritune.run.session import Begin, carry_out
from inheritune.run_directory import TRAIN, Run
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference, measure_benchmark, open_reference
from inheritune.steps.reference_store import pinned_commit
from inheritune.steps.result import TrainingResult
from inheritune.steps.tokens import embedding_rows
from inheritune.steps.training import run_training, training_inputs
from inheritune.steps.trainings import TrainingSpec
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import catch_signals

__all__ = ["Pretraining", "plan_pretraining", "pretrain"]

# Where nothing is set: as in the recipes that come with the package.
_LONGEST_SEQUENCE = 1024
_LEAST_SEQUENCES = 8  # in either split, as long as sequences can be made shorter for it
_MOST_BATCH_TOKENS = 393_216
_LEAST_STEPS = 200
_WARMUP_SHARE = 20  # one in so many tokens
_MICRO_BATCH = 8

_SECTIONS = ("train", "evaluate")
_KEYS = (("reference", "revision"), ("data", "allow_repeat"))


@dataclass(frozen=True)
class Pretraining:
    """What is to be done.

    Attributes:
        recipe: The settings, as a recipe has them.
        tokens: What is trained on.
    """

    recipe: RecipeFile
    tokens: TokenDirectory


def plan_pretraining(
    model: str, tokens: Path, out: Path, sets: Sequence[str] = (), processes: int = 1
) -> Pretraining:
    """Choose what was not set, by the model and the tokens; nothing is written.

    Sequences of 1,024 tokens, or as many as the model has positions and both splits hold; one
    epoch; steps of 393,216 tokens, or so many fewer that there are 200 steps; a warm-up over a
    twentieth of the tokens. The rest is as in a recipe.

    Args:
        model: Local directory, Hub id, or ``embedded:demo``.
        tokens: A directory that `prepare` has written.
        out: Where it is going to be trained; it decides at which commit a Hub id is opened.
        sets: Overrides of `train`, `evaluate`, ``data.allow_repeat`` and ``reference.revision``.
        processes: That share the training; it decides the sequences of a forward only.

    Raises:
        RecipeError: An override is not understood, or is of something else.
        SourceError: The model cannot be opened.
        DataError: The tokens are broken or too few, or not of this model's tokenizer.
        MachineError: The Hub cannot be reached.
    """
    tree = read_sets(sets)
    given: dict[str, Any] = tree.value
    _refuse_other_keys(tree)
    revision = given.get("reference", {}).get("revision")
    opened_tokens = open_tokens(tokens)
    commit = pinned_commit(Run(out), model, revision) or revision
    with catch_signals() as stop:
        opened_model = open_model(model, commit, stop=stop)
    _refuse_other_ids(opened_tokens, opened_model)
    given["train"] = _chosen(given.get("train", {}), opened_tokens, opened_model, processes)
    given["name"] = "train"
    given["reference"] = {"model": model} | given.get("reference", {})
    given["data"] = {"source": str(tokens)} | given.get("data", {})
    given["grow"] = {"add": 0}
    given["variants"] = {"train": {"start": "inherit"}}
    recipe = made_recipe(tree)
    train, data = recipe.recipe.train, recipe.recipe.data
    train_ids, val_ids = opened_tokens.train.num_ids, opened_tokens.val.num_ids
    check_length(train_ids, val_ids, train.seq_len, data)
    check_budget(opened_tokens, train.tokens, train.seq_len, data.allow_repeat)
    return Pretraining(recipe, opened_tokens)


def pretrain(
    plan: Pretraining,
    out: Path,
    on_progress: Listener = silent,
    allowed: Collection[str] = (),
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Train a model further, measured before and after; goes on where it was stopped.

    Args:
        plan: What `plan_pretraining` chose.
        out: Receives ``model/``, run.json, metrics.jsonl and checkpoints; an unfinished training in
            it is continued.
        on_progress: Told what goes on.
        allowed: Keys that may differ from what it was begun with; recorded.
        checkpoint: The one to go on from; None: the newest that is whole.

    Returns:
        The result, as run.json keeps it. Of several processes, all but the first have none.

    Raises:
        RecipeError: ``out`` is something else, or was begun with another model, other tokens or
            other settings.
        InherituneError: It could not be done; run.json says why, and what was done stays.
    """

    def work(job: Job) -> tuple[dict[str, Any], int]:
        reference = open_reference(job)
        before = measure_benchmark(job, reference, plan.tokens)
        trial = _train(job, reference, plan.tokens, before.windows)
        final = {
            "model": str(out / "model"),
            "layers": trial.layers,
            "params": trial.params,
            "tokens": trial.tokens,
            "epochs": trial.epochs,
            "val_loss_before": before.val_loss,
            "val_loss": trial.val_loss,
            "val_loss_se": trial.val_loss_se,
            "difference": trial.difference,
            "difference_se": trial.difference_se,
            "flops": before.flops + trial.flops,
            "seconds": round(before.seconds + trial.seconds, 1),
            "restarts": trial.restarts,
            "skipped": trial.skipped,
            "notes": trial.notes,
            "ledger": training_ledger(before, trial),
        }
        job.run.update(settings=trial.settings, tokens=plan.tokens.summary(), result=final)
        return final, 0

    return carry_out(plan.recipe, out, on_progress, work, Begin(TRAIN, allowed, checkpoint))[0]


def _train(
    job: Job, reference: Reference, tokens: TokenDirectory, before: list[float]
) -> TrainingResult:
    wanted = job.recipe.train.tokens
    inputs = training_inputs(job, tokens) | {
        "reference": reference.model.digest,
        "variant_tokens": wanted,
    }
    # Read where it lies: a copy of the model beside its checkpoints would serve nobody.
    directory = str(reference.model.path.resolve())
    arm = TrainingSpec("train", "trained", reference.layers, wanted, model=directory)
    return run_training(job, arm, job.run.root, tokens, inputs, before)


def _refuse_other_keys(tree: Tree) -> None:
    for path, place in tree.places.items():
        section = len(path) == 1 and isinstance(tree.value.get(path[0]), dict)
        if not section and path[:2] not in _KEYS and (len(path) < 2 or path[0] not in _SECTIONS):
            known = [f"{name}.*" for name in _SECTIONS] + [dotted(key) for key in _KEYS]
            raise RecipeError(
                f"{place.where}: {dotted(path)} says nothing to a training without a recipe.",
                f"Keys are {', '.join(known)}.",
            )
    revision = tree.value.get("reference", {}).get("revision")
    if revision is not None and not isinstance(revision, str):
        raise RecipeError(f"reference.revision is {revision!r}.", "Write it as text, in quotes.")


def _refuse_other_ids(tokens: TokenDirectory, model: ModelDirectory) -> None:
    opened = open_tokenizer(model.path)
    rows = embedding_rows(model.path, opened)
    largest = max(entry["max_id"] for entry in tokens.manifest["files"])
    if largest >= rows:
        raise DataError(
            f"the tokens in {tokens.path} have ids up to {largest}, the embedding of {model.name} "
            f"has {rows} rows.",
            "Prepare them with the tokenizer of this model.",
        )
    theirs = tokens.manifest["tokenizer"].get("sha256")
    if theirs != opened.sha256:
        raise DataError(
            f"the tokens in {tokens.path} are of the tokenizer {str(theirs)[:12]}, {model.name} "
            f"has {opened.sha256[:12]}.",
            "Prepare them with the tokenizer of this model.",
        )


# -- what was not set


def _chosen(
    given: dict[str, Any], tokens: TokenDirectory, model: ModelDirectory, processes: int
) -> dict[str, Any]:
    """The section `train`; what was given and is no number is left for the recipe to refuse."""
    seq_len = _number(given, "seq_len") or _sequence_length(tokens, model)
    epoch = tokens.train.num_samples(seq_len) * seq_len
    planned = _number(given, "tokens") or max(1, epoch)
    limit = max(1, min(_MOST_BATCH_TOKENS, planned // _LEAST_STEPS) // seq_len)  # sequences
    micro_batch = _number(given, "micro_batch")
    # A power of two: the same batch then divides among 2, 4, 8 processes.
    batch = (micro_batch or 1) * _power_of_two(limit // (micro_batch or 1))
    batch_tokens = _number(given, "batch_tokens") or batch * seq_len
    each = max(1, batch_tokens // seq_len // processes)
    rate = given.get("learning_rate", Train.model_fields["learning_rate"].default)
    lowest = Train.model_fields["min_learning_rate"].default
    return {
        "tokens": planned,
        "seq_len": seq_len,
        "batch_tokens": batch_tokens,
        "micro_batch": micro_batch or math.gcd(each, _MICRO_BATCH),
        "min_learning_rate": min(lowest, rate) if isinstance(rate, float) else lowest,
        "warmup_tokens": planned // _WARMUP_SHARE,
    } | given


def _number(given: dict[str, Any], key: str) -> int | None:
    value = parse_amount(given.get(key))
    return value if type(value) is int and value > 0 else None


def _sequence_length(tokens: TokenDirectory, model: ModelDirectory) -> int:
    config = text_config(model.config)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    longest = positions if isinstance(positions, int) else _LONGEST_SEQUENCE
    length = min(longest, _LONGEST_SEQUENCE)
    shorter = min(tokens.train.num_ids, tokens.val.num_ids)
    least: int = 8  # of train.seq_len
    while length // 2 >= least and shorter - 1 < _LEAST_SEQUENCES * length:
        length //= 2
    return length


def _power_of_two(at_most: int) -> int:
    return 1 << max(0, at_most.bit_length() - 1)
