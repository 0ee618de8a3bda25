"""Measure scores for choosing layers on training text, keep them in the run, and count their cost.

The validation set is never read: what is chosen by it could not be measured on it.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from inheritune.data.calibration import MOST_TOKENS, WINDOWS
from inheritune.data.tokens import TokenDirectory
from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import EVALUATION_SHARE, first_int, hidden_size
from inheritune.recipe.schema import Recipe
from inheritune.run_record.fields import finite_number
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.training_spec import inherited_layers, selection_of
from inheritune.surgery.removal import without
from inheritune.surgery.selection import needed_measurement

if TYPE_CHECKING:
    from inheritune.analysis.layer_scores import MeasuredScores, ScoreTable

_LONGEST_BLOCK = 24  # that run.json and the page show; selection.json has all


def asks_for_scores(recipe: Recipe) -> bool:
    """Whether a recipe chooses layers, or gives them back, by scores."""
    grows = recipe.grow.add > 0 or recipe.grow.patch
    return any(
        needed_measurement(selection_of(recipe, name), grows and variant.is_target) == "scores"
        for name, variant in recipe.variants.items()
    )


def window_length(recipe: Recipe) -> int:
    """Tokens of each window of training text that scores are measured on."""
    return min(MOST_TOKENS, recipe.train.seq_len)


def run_scores(job: Job, model: ModelDirectory, tokens: TokenDirectory) -> "MeasuredScores":
    """Return the scores of a run's reference; nothing is measured before it is asked for."""
    from inheritune.analysis.layer_scores import MeasuredScores, keep_table, stored_table
    from inheritune.analysis.sequences import Sequences, draw_sequences

    length = window_length(job.recipe)
    inputs = {
        "reference": model.digest,
        "tokens": tokens.fingerprint,
        "windows": WINDOWS,
        "tokens_per_window": length,
    }

    def draw() -> Sequences:
        bos = tokens.manifest["policy"].get("bos")
        return draw_sequences(tokens.train, WINDOWS, length, bos, "the run's training text")

    path, tell = job.run.selection, job.on_progress
    keep = partial(keep_table, path, inputs)
    return MeasuredScores(model, draw, stored_table(path, inputs), keep, job.stop, tell)


def selection_cost(reference: Reference) -> tuple[float, float] | None:
    """FLOPs and seconds of all scores that were measured; None if none were."""
    if reference.scores is None or not reference.scores.table.seconds:
        return None
    table = reference.scores.table
    runs = table.layer_tokens, table.head_tokens
    return score_flops(reference.model, reference.flops_per_token, *runs), table.seconds


def score_flops(
    model: ModelDirectory, flops_per_token: float, layer_tokens: int, head_tokens: int
) -> float:
    """FLOPs of the forward passes that scores are measured by.

    Args:
        model: The reference.
        flops_per_token: Its training FLOPs per token.
        layer_tokens: Tokens that are run through a layer.
        head_tokens: Tokens whose next one is predicted.
    """
    section = text_config(model.config)
    head = 2 * (first_int(section, ("vocab_size",)) or 0) * hidden_size(section)
    layer = (flops_per_token * EVALUATION_SHARE - head) / model.layers
    return layer_tokens * layer + head_tokens * head


def _blocks(table: "ScoreTable") -> list[dict[str, Any]]:
    """A row for each block of neighbouring layers; the angle is known of all of them."""
    rows = []
    for (start, length), angle in sorted(table.angles.items()):
        if length <= min(_LONGEST_BLOCK, table.total - 1):
            score = table.cuts.get(without(table.total, range(start, start + length)))
            kl = None if score is None else finite_number(score.kl)
            row = {"start": start, "length": length, "angle": finite_number(angle), "kl": kl}
            rows.append(row)
    return rows


def selection_record(
    recipe: Recipe, reference: Reference, results: Sequence[TrainingResult]
) -> dict[str, Any] | None:
    """Describe the scores of layers, and of what each model inherited; None if none were measured.

    Args:
        results: Trainings of the run; those that inherit whole layers are described.
    """
    if reference.scores is None or not reference.scores.table.influence:
        return None
    scores = reference.scores
    variants = recipe.variants
    inherited = [r for r in results if r.start == "inherit" and variants[r.name].parts == "all"]
    cuts = [inherited_layers(recipe, r.name, reference.facts, r.layers) for r in inherited]
    cut_scores, table = scores.scores(cuts), scores.table
    return {
        "text": scores.sequences.as_json(),
        "loss": finite_number(table.loss),
        "layers": [{k: v for k, v in row.items() if k != "angle"} for row in table.rows()],
        "blocks": _blocks(table),
        "inherited": [
            {
                "name": result.name,
                "select": selection_of(recipe, result.name) or "first",
                "layers": result.layers,
                "kept": list(cut),
                "kl": finite_number(score.kl),
                "loss": finite_number(score.loss - table.loss),
                "start_val_loss": result.start_val_loss,
                "val_loss": result.val_loss,
            }
            for result, cut, score in zip(inherited, cuts, cut_scores, strict=True)
        ],
        "seconds": round(table.seconds, 1),
    }
