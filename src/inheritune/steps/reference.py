"""Open the reference, or train it where the recipe says so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.data.order import ORDER_VERSION
from inheritune.data.prepare_text import training_texts
from inheritune.data.tokenizer import open_tokenizer, train_tokenizer
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, RecipeError, SourceError
from inheritune.model_files.config import cut_config, layer_count, text_config
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.schema import ReferenceTraining
from inheritune.steps.job import Job, finish, finished
from inheritune.steps.reference_store import is_kept, keep, kept_path, only_trainer, open_pinned
from inheritune.steps.resume import decisive
from inheritune.steps.tokens import prepare_tokens
from inheritune.steps.training import run_training, training_inputs
from inheritune.steps.training_spec import TrainingSpec
from inheritune.system.files import write_json
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json

__all__ = [
    "Reference",
    "flops_per_token",
    "open_reference",
    "tokenizer_home",
]


@dataclass(frozen=True)
class Reference:
    """The large model, opened, with what is known of its training.

    Attributes:
        model: Its directory.
        name: As the recipe calls it.
        params: Weights, tied ones once.
        flops_per_token: Of a training token, at the recipe's sequence length.
        training: ``tokens``, ``flops``, ``seconds``, ``curve`` of its training, and ``processes``
            where it says so; empty if unknown.
        trained_here: Whether this run trained it.
        taken_from: Where it was found, trained by another run; None: it was not.
        advised_layers: How many first layers its attention advises; None: not asked yet.
        layers_by_rank: Its layers that have attention, that of lowest rank first; None: not asked
            yet.
    """

    model: ModelDirectory
    name: str
    params: int
    flops_per_token: float
    training: Mapping[str, Any]
    trained_here: bool
    taken_from: str | None = None
    advised_layers: int | None = None
    layers_by_rank: tuple[int, ...] | None = None

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.model.layers


def open_reference(job: Job) -> Reference:
    """The reference: opened, or trained here first when the recipe says so."""
    from inheritune.training.models import describe

    wanted, taken = job.recipe.reference, None
    if wanted.train is not None:
        taken = _train_reference(job, wanted.train)
        folder, name = taken or job.run.reference / "model", "trained here"
        name = name if taken is None else "trained by another run"
        model = open_model(str(folder), None)
    else:
        assert wanted.model is not None  # the recipe has one or the other
        place = (job.run, wanted.model, wanted.revision)
        model, name = open_pinned(*place, stop=job.stop), wanted.model
    _refuse_long_sequences(job, model)
    shape = describe(model.path, job.recipe.train.seq_len)
    return Reference(
        model=model,
        name=name,
        params=shape.params,
        flops_per_token=shape.flops_per_token,
        training=_training_of(model.path),
        trained_here=wanted.train is not None and taken is None,
        taken_from=None if taken is None else str(taken),
    )


def _refuse_long_sequences(job: Job, model: ModelDirectory) -> None:
    config = text_config(model.config)
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    rotary = any("rope" in key or "rotary" in key for key in config)
    seq_len = job.recipe.train.seq_len
    if not isinstance(limit, int) or seq_len <= limit:
        return
    if not rotary:
        raise RecipeError(
            f"train.seq_len is {seq_len}, but {model.name} has {limit} positions.",
            f"Set train.seq_len to {limit} or less.",
        )
    said = f"train.seq_len {seq_len} is above the {limit} positions it was made for"
    job.on_progress(Progress("reference", message=said))


def _training_of(model: Path) -> dict[str, Any]:
    # Any model directory may hold a file of this name; only ours has these figures.
    try:
        ledger = read_json(model / "training.json")
        known = {key: ledger[key] for key in ("tokens", "flops", "seconds", "curve")}
        numbers = all(isinstance(known[key], int | float) for key in ("tokens", "flops", "seconds"))
        processes = ledger.get("processes")
        known |= {"processes": processes} if isinstance(processes, int) else {}
        return known if numbers and isinstance(known["curve"], list) else {}
    except (DataError, KeyError, TypeError):
        return {}


def tokenizer_home(job: Job) -> Path:
    """The directory whose tokenizer and config the tokens are prepared for."""
    wanted = job.recipe.reference
    if wanted.train is not None:
        return _reference_start(job, wanted.train)
    assert wanted.model is not None  # the recipe has one or the other
    place = (job.run, wanted.model, wanted.revision)
    return open_pinned(*place, stop=job.stop).path


def _reference_start(job: Job, wanted: ReferenceTraining) -> Path:
    start, path = job.run.reference / "start", job.run.reference / "start.json"
    inputs = {
        "reference": wanted.model_dump(mode="json", exclude={"tokens", "keep_in"}),
        "data": job.recipe.data.model_dump(mode="json", exclude={"allow_repeat"}),
    }
    if finished(job, path, inputs) is not None:
        return start
    tokenizer = job.run.reference / "tokenizer"
    if wanted.tokenizer is not None:
        tokenizer = open_model(wanted.tokenizer, None, stop=job.stop).path
    else:
        job.on_progress(Progress("tokenizer", message="training one on the text"))
        train_tokenizer(training_texts(job.recipe.data), wanted.vocab_size, tokenizer)
    start.mkdir(parents=True, exist_ok=True)
    copy_side_files(tokenizer, start)
    opened = open_tokenizer(start)
    ids = {"vocab_size": opened.rows, "bos_token_id": opened.bos, "eos_token_id": opened.eos}
    write_json(start / "config.json", ids | wanted.config)
    finish(path, inputs, {"vocab_size": opened.rows})
    return start


def _train_reference(job: Job, wanted: ReferenceTraining) -> Path | None:
    """Train it, or take it from where another run left it; then that place is returned."""
    start = _reference_start(job, wanted)
    tokens = prepare_tokens(job, start)
    if wanted.keep_in is None:
        _train_here(job, wanted, tokens)
        return None
    made_from = _made_from(job, wanted, tokens, start)
    kind = f"{wanted.config['model_type']}-{layer_count(wanted.config)}-layers"
    place, done = kept_path(Path(wanted.keep_in).expanduser(), kind, made_from), job.run.reference
    if (done / "result.json").exists() and is_kept(place, made_from):
        _train_here(job, wanted, tokens)  # nothing is left to do but to compare its inputs
        return None
    if _taken(job, place, made_from):
        return place
    with only_trainer(place):
        if _taken(job, place, made_from):
            return place
        _train_here(job, wanted, tokens)
        if changed := job.run.read().get("allowed_changes"):
            said = f"not kept in {place}: {', '.join(changed)} changed while it was trained"
            job.on_progress(Progress("reference", message=said))
        else:
            keep(done / "model", place, made_from, job.recipe.name)
    return None


def _taken(job: Job, place: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the reference is another run's; this one then stays with it."""
    if (job.run.reference / "result.json").exists():
        return False
    path, there = job.run.reference / "taken.json", is_kept(place, made_from)
    if finished(job, path, made_from) is None:
        if there:
            finish(path, made_from, {"taken_from": str(place)})
            said = f"taken from {place}, where another run left it"
            job.on_progress(Progress("reference", message=said))
    elif not there:
        raise SourceError(
            f"the reference that this run began with is not in {place} any more.",
            "Put it back, or give the run another name.",
        )
    return there


def _made_from(
    job: Job, wanted: ReferenceTraining, tokens: TokenDirectory, start: Path
) -> dict[str, Any]:
    """What decides the weights, as JSON gives it back; the tokens stand for text and tokenizer."""
    found = {
        "config": read_json(start / "config.json"),
        "tokens": tokens.fingerprint,
        "order": ORDER_VERSION,
        "train": decisive(job.recipe.train),
        "trained_on": wanted.tokens,
    }
    return dict(json.loads(json.dumps(found)))


def _train_here(job: Job, wanted: ReferenceTraining, tokens: TokenDirectory) -> None:
    folder = job.run.reference
    inputs = training_inputs(job, tokens) | {
        "reference": wanted.model_dump(mode="json", exclude={"keep_in"})
    }
    arm = TrainingSpec("reference", "fresh", layer_count(wanted.config), wanted.tokens)
    run_training(job, arm, folder, tokens, inputs)


def flops_per_token(job: Job, reference: Reference, layers: int) -> float:
    """Training cost of a model that has some of the reference's layers."""
    from inheritune.training.models import describe_config

    config, _ = cut_config(reference.model.config, layers)
    return describe_config(config, job.recipe.train.seq_len).flops_per_token
