"""Prepare a run's tokens with the tokenizer of its reference."""

from pathlib import Path

from inheritune.data.import_tokens import FlatFiles, import_tokens
from inheritune.data.prepare_text import prepare_text
from inheritune.data.token_parts import TokenParts, Worker, prepare_parts
from inheritune.data.tokenizer import embedding_rows, open_tokenizer
from inheritune.data.tokens import TokenDirectory, check_budget
from inheritune.recipe.schema import Recipe
from inheritune.steps.job import Job
from inheritune.system.progress import Listener, Progress
from inheritune.training.tokenization import compare_tokenization


def prepare_tokens(job: Job, model: Path) -> TokenDirectory:
    """Prepare training and validation tokens with the tokenizer of a model directory."""
    recipe = job.recipe
    tokenizer = open_tokenizer(model)
    rows = embedding_rows(model, tokenizer)
    say_differences(model, job.on_progress)
    tokens = prepare_text(
        recipe.data,
        tokenizer,
        rows,
        recipe.train.seq_len,
        job.run.tokens,
        job.on_progress,
        job.stop,
    )
    _check_budget(recipe, tokens)
    return tokens


def prepare_token_parts(job: Job, model: Path, worker: Worker) -> TokenParts:
    """Prepare a worker's parts of the tokens with the tokenizer of a model directory."""
    tokenizer = open_tokenizer(model)
    rows = embedding_rows(model, tokenizer)
    say_differences(model, job.on_progress)
    recipe, seq_len, out = job.recipe, job.recipe.train.seq_len, job.run.tokens
    parts = prepare_parts(
        recipe.data, tokenizer, rows, seq_len, out, worker, job.on_progress, job.stop
    )
    if parts.tokens is not None:
        _check_budget(recipe, parts.tokens)
    return parts


def _check_budget(recipe: Recipe, tokens: TokenDirectory) -> None:
    train, allow_repeat = recipe.train, recipe.data.allow_repeat
    longest = _longest_training(recipe)
    check_budget(tokens, longest, train.seq_len, allow_repeat, train.batch_tokens)


def import_flat_tokens(job: Job, model: Path, files: FlatFiles) -> TokenDirectory:
    """Import token ids of another program, made with the tokenizer of a model directory."""
    say_differences(model, job.on_progress)
    tokenizer = open_tokenizer(model)
    rows = embedding_rows(model, tokenizer)
    return import_tokens(files, tokenizer, rows, job.run.tokens, job.on_progress, job.stop)


def say_differences(model: Path, on_progress: Listener) -> None:
    """Say where transformers reads a model's tokenizer otherwise than text is prepared."""
    found = compare_tokenization(model)
    for difference in found.differences if found else ():
        on_progress(Progress("tokenizer", message=difference))


def _longest_training(recipe: Recipe) -> int:
    counts = [recipe.train.tokens]
    for name, variant in recipe.variants.items():
        trainings = 2 if variant.start == "stacking" else 1  # the second continues in the text
        counts.append(trainings * (recipe.tokens_of(name) or 0))
    if recipe.reference.train is not None:
        counts.append(recipe.reference.train.tokens)
    return max(counts)
