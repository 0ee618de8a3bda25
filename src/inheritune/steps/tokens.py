"""The run's tokens, by the reference's tokenizer."""

from pathlib import Path

from inheritune.checkpoints.config import text_config
from inheritune.data.prepare import prepare
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import TokenDirectory, check_budget
from inheritune.durable import read_json_file
from inheritune.recipe import Recipe
from inheritune.steps.job import Job

__all__ = ["prepare_tokens"]


def prepare_tokens(job: Job, model: Path) -> TokenDirectory:
    """Training and validation tokens, by the tokenizer of a model directory."""
    recipe = job.recipe
    tokenizer = open_tokenizer(model)
    rows = text_config(read_json_file(model / "config.json")).get("vocab_size", tokenizer.rows)
    tokens = prepare(
        recipe.data,
        tokenizer,
        rows,
        recipe.train.seq_len,
        job.run.tokens,
        job.on_progress,
        job.stop,
    )
    check_budget(tokens, _longest_training(recipe), recipe.train.seq_len, recipe.data.allow_repeat)
    return tokens


def _longest_training(recipe: Recipe) -> int:
    planned = [recipe.train.tokens]
    planned += [v.tokens for v in recipe.variants.values() if isinstance(v.tokens, int)]
    if recipe.reference.train is not None:
        planned.append(recipe.reference.train.tokens)
    return max(planned)
