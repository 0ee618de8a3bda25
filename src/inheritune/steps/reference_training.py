"""Train the reference as the recipe describes it, or take over one that another run trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.data.order import ORDER_VERSION
from inheritune.data.prepare_text import training_texts
from inheritune.data.tokenizer import open_tokenizer, train_tokenizer
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import SourceError
from inheritune.model_files.config import layer_count
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import open_model
from inheritune.recipe.schema import ReferenceTraining
from inheritune.steps.job import Job
from inheritune.steps.reference_store import is_stored, store, store_path, training_lock
from inheritune.steps.resume import decisive, save_result, saved_result
from inheritune.steps.tokens import prepare_tokens
from inheritune.steps.training import run_training
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.training_task import TrainingTask, training_inputs
from inheritune.system.files import make_directory, write_json
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json


def write_reference_start(job: Job, section: ReferenceTraining) -> Path:
    """Write tokenizer and config of the reference; the tokenizer is trained if none is named.

    Returns:
        ``reference/start`` of the run.
    """
    start, result_file = job.run.reference / "start", job.run.reference / "start.json"
    inputs = {
        "reference": section.model_dump(mode="json", exclude={"tokens", "keep_in"}),
        "data": job.recipe.data.model_dump(mode="json", exclude={"allow_repeat"}),
    }
    if saved_result(job, result_file, inputs) is not None:
        return start
    tokenizer_dir = job.run.reference / "tokenizer"
    if section.tokenizer is not None:
        tokenizer_dir = open_model(section.tokenizer, None, stop=job.stop).path
    else:
        job.on_progress(Progress("tokenizer", message="training one on the text"))
        train_tokenizer(training_texts(job.recipe.data), section.vocab_size, tokenizer_dir)
    make_directory(start)
    copy_side_files(tokenizer_dir, start)
    tokenizer = open_tokenizer(start)
    ids = {
        "vocab_size": tokenizer.rows,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
    }
    write_json(start / "config.json", ids | section.config)
    save_result(result_file, inputs, {"vocab_size": tokenizer.rows})
    return start


def train_reference(job: Job, section: ReferenceTraining) -> Path | None:
    """Train the reference, or take it over from the store of ``reference.train.keep_in``.

    Returns:
        Its directory in the store, where another run trained it; None: this run trained it.

    Raises:
        MachineError: Another run is training it now.
        SourceError: The reference that this run began with is not in the store any more.
    """
    start = write_reference_start(job, section)
    tokens = prepare_tokens(job, start)
    if section.keep_in is None:
        _train_here(job, section, tokens)
        return None
    made_from = _made_from(job, section, tokens, start)
    kind = f"{section.config['model_type']}-{layer_count(section.config)}-layers"
    path = store_path(Path(section.keep_in).expanduser(), kind, made_from)
    is_trained_here = (job.run.reference / "result.json").exists()
    if is_trained_here and is_stored(path, made_from):
        _train_here(job, section, tokens)  # compares the inputs; there is nothing to train
        return None
    if _take_over(job, path, made_from):
        return path
    with training_lock(path):
        if _take_over(job, path, made_from):  # another run has stored it in the meantime
            return path
        _train_here(job, section, tokens)
        if changes := job.run.read().get("allowed_changes"):
            message = f"not kept in {path}: {', '.join(changes)} changed while it was trained"
            job.on_progress(Progress("reference", message=message))
        else:
            store(job.run.reference / "model", path, made_from, job.recipe.name)
    return None


def _take_over(job: Job, path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the reference is another run's; from then on, this run stays with it."""
    if (job.run.reference / "result.json").exists():
        return False
    result_file, is_there = job.run.reference / "taken.json", is_stored(path, made_from)
    if saved_result(job, result_file, made_from) is None:
        if is_there:
            save_result(result_file, made_from, {"taken_from": str(path)})
            message = f"taken from {path}, where another run left it"
            job.on_progress(Progress("reference", message=message))
    elif not is_there:
        raise SourceError(
            f"the reference that this run began with is not in {path} any more.",
            "Put it back, or give the run another name.",
        )
    return is_there


def _made_from(
    job: Job, section: ReferenceTraining, tokens: TokenDirectory, start: Path
) -> dict[str, Any]:
    """Everything that decides the weights; the tokens stand for text and tokenizer."""
    made_from = {
        "config": read_json(start / "config.json"),
        "tokens": tokens.fingerprint,
        "order": ORDER_VERSION,
        "train": decisive(job.recipe.train.model_copy(update={"only": None})),
        "trained_on": section.tokens,
    }
    return dict(json.loads(json.dumps(made_from)))  # as a file gives it back


def _train_here(job: Job, section: ReferenceTraining, tokens: TokenDirectory) -> None:
    spec = TrainingSpec("reference", "fresh", layer_count(section.config), section.tokens)
    reference = section.model_dump(mode="json", exclude={"keep_in"})
    inputs = training_inputs(job, tokens, spec) | {"reference": reference}
    run_training(TrainingTask(job, spec, job.run.reference, tokens, inputs))
