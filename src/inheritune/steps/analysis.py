"""The attention and the layers of models, on the same sequences; never at a run's cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.analysis.advice import advise, laziest_first
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, InherituneError, Interrupted
from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.schema import Analyze, Recipe
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.surgery.cut_points import cut_point, find_pattern
from inheritune.surgery.sizes import Sizes
from inheritune.system.files import read_json_file, write_json
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag

if TYPE_CHECKING:
    from inheritune.analysis.sequences import Sequences

__all__ = [
    "Looks",
    "advice_for",
    "analyze_run",
    "asks_for_ranks",
    "in_words",
    "look_at",
    "ranked",
    "summary",
]

_FORMAT = 1  # of analysis.json
_FEWEST = 2  # sequences below which nothing is told


@dataclass(frozen=True)
class Looks:
    """How models are looked at.

    Attributes:
        sequences: On which.
        threshold: Of the rank.
        removal_sequences: On how many of them the loss without each layer is measured.
        stop: Asked between forwards.
        on_progress: Told what goes on.
    """

    sequences: "Sequences"
    threshold: float = 0.9
    removal_sequences: int = 20
    stop: StopFlag | None = None
    on_progress: Listener = silent


def look_at(model: ModelDirectory, role: str, looks: Looks) -> dict[str, Any]:
    """Rank, mass and importance of a model's layers, as analysis.json keeps them.

    Args:
        model: Its directory; its own code is not run.
        role: What it is called: ``"reference"``, ``"target"``, ``"model"``.
        looks: On what, and how.

    Raises:
        UnsupportedModelError: Its attention cannot be observed.
        Interrupted: Asked to stop.
    """
    from inheritune.analysis.attention import measure_attention
    from inheritune.analysis.importance import measure_importance
    from inheritune.training.hardware import forward_device
    from inheritune.training.models import load_model

    _refuse_long_sequences(model, looks)
    live: Any = load_model(model.path).to(forward_device())  # type: ignore[arg-type]
    ids, told = looks.sequences.ids, (looks.stop, looks.on_progress)
    task = f"attention of the {role}"
    attention = measure_attention(live, model.layers, ids, looks.threshold, *told, task)
    task = f"layers of the {role}"
    importance = measure_importance(live, model.layers, ids, looks.removal_sequences, *told, task)
    return {
        "role": role,
        "name": model.name,
        "layers": model.layers,
        "attention": attention.as_json(),
        "importance": importance.as_json(),
    }


def _refuse_long_sequences(model: ModelDirectory, looks: Looks) -> None:
    config, length = text_config(model.config), looks.sequences.ids.shape[1]
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(limit, int) and length > limit:
        raise DataError(
            f"sequences of {length} tokens are asked for, but {model.name} has {limit} positions.",
            f"Ask for {limit} tokens per sequence, or less.",
        )


def in_words(looks: Looks) -> list[str]:
    """What a reader must know of the sequences: sentences."""
    drawn = looks.sequences
    count, length = drawn.ids.shape
    said = []
    if count < drawn.asked:
        said.append(
            f"Attention was analysed on {count} sequences of {length} tokens, not on "
            f"{drawn.asked}: the text has no more."
        )
    return said


def _safe_cuts(reference: ModelDirectory) -> frozenset[int]:
    """Numbers of first layers at which a model can be cut without breaking a pattern."""
    total = reference.layers
    found = find_pattern(reference, Sizes(reference).layers)
    points = (cut_point(reference.config, total, count, found) for count in range(1, total))
    return frozenset(point.layers for point in points if point.is_safe)


def summary(
    looks: Looks, models: list[dict[str, Any]], advice: dict[str, Any] | None
) -> dict[str, Any]:
    """What analysis.json and run.json say.

    Args:
        looks: How the models were looked at.
        models: What `look_at` found of each.
        advice: Of `advice_for`; None where it is not known.
    """
    from inheritune.analysis.rank import calibration

    return {
        "format": _FORMAT,
        "sequences": looks.sequences.as_json(),
        "threshold": looks.threshold,
        "calibration": calibration(looks.sequences.ids.shape[1], looks.threshold),
        "models": models,
        "advice": advice,
    }


def advice_for(model: ModelDirectory, seen: Mapping[str, Any]) -> dict[str, Any]:
    """`advise` for a model that was looked at, as JSON values."""
    return asdict(advise(_max_ranks(seen), model.layers, _safe_cuts(model)))


def _max_ranks(seen: Mapping[str, Any]) -> dict[int, float]:
    """MaxRank by the number of the layer, of what `look_at` found."""
    return {row["layer"]: row["max_rank"] for row in seen["attention"]["layers"]}


# -- in a run


def asks_for_ranks(recipe: Recipe) -> bool:
    """Whether a recipe needs the reference's attention before anything is trained."""
    chosen = any(variant.select == "lazy" for variant in recipe.variants.values())
    return chosen or recipe.inherit.layers == "advice"


def ranked(job: Job, reference: Reference, tokens: TokenDirectory) -> Reference:
    """The reference, with what its attention says of its layers, where the recipe needs that.

    Raises:
        UnsupportedModelError: Its attention cannot be observed.
        DataError: The validation set is too short for a sequence.
    """
    if not asks_for_ranks(job.recipe):
        return reference
    seen = _seen(job, reference.model, "reference", _looks(job, tokens), tokens)
    advice, ranks = advice_for(reference.model, seen), _max_ranks(seen)
    job.on_progress(
        Progress("analysis", message=f"advice: {advice['advice']} layers; {advice['reason']}")
    )
    return replace(reference, advised_layers=advice["advice"], layers_by_rank=laziest_first(ranks))


def analyze_run(
    job: Job, reference: Reference, tokens: TokenDirectory, target: Path
) -> tuple[dict[str, Any] | None, list[str]]:
    """Reference and target beside each other, for run.json; whatever fails is a note.

    Args:
        job: The run.
        reference: What was inherited from.
        tokens: Their validation set is used.
        target: Model directory of the target.

    Returns:
        None where nothing could be told, or was not asked for; and sentences to note.

    Raises:
        Interrupted: Asked to stop; what was trained is complete.
    """
    if job.recipe.analyze is None:
        return None, []
    try:
        looks = _looks(job, tokens)
    except DataError as error:
        return None, [f"Attention was not analysed: {error.message}"]
    models, notes = [], in_words(looks)
    for role, model in (("reference", reference.model), ("target", open_model(str(target)))):
        try:
            models.append(_seen(job, model, role, looks, tokens))
        except Interrupted:
            raise
        except InherituneError as error:
            notes.append(f"The attention of the {role} was not analysed: {error.message}")
        except Exception as error:
            # The training is done: whatever a model's class trips over, the result stands.
            said = f"{type(error).__name__}: {str(error)[:200]}"
            notes.append(f"The attention of the {role} was not analysed: {said}")
    if not models:
        return None, notes
    advice = advice_for(reference.model, models[0]) if models[0]["role"] == "reference" else None
    return summary(looks, models, advice) | {"notes": notes}, notes


def _looks(job: Job, tokens: TokenDirectory) -> Looks:
    from inheritune.analysis.sequences import draw_sequences

    asked = job.recipe.analyze or Analyze()
    length = asked.tokens_per_sequence
    bos = tokens.manifest["policy"].get("bos")
    source = "the run's validation set"
    drawn = draw_sequences(tokens.val, asked.sequences, length, bos, source)
    if len(drawn.ids) < min(_FEWEST, asked.sequences):
        raise DataError(
            f"the validation set has {tokens.val.num_ids} tokens, too few for sequences of "
            f"{length}.",
            "Lower analyze.tokens_per_sequence, or hold more text out.",
        )
    return Looks(drawn, asked.threshold, stop=job.stop, on_progress=job.on_progress)


def _seen(
    job: Job, model: ModelDirectory, role: str, looks: Looks, tokens: TokenDirectory
) -> dict[str, Any]:
    """What was found of a model, measured unless analysis.json has it of the same inputs."""
    path = job.run.analysis
    inputs = {
        "digest": model.digest,
        "tokens": tokens.val_fingerprint,
        "threshold": looks.threshold,
        "removal_sequences": looks.removal_sequences,
        "sequences": looks.sequences.as_json(),
    }
    before = _stored(path)
    entry = before.get(role)
    if isinstance(entry, dict) and entry.get("inputs") == inputs:
        return dict(entry["result"])
    result = look_at(model, role, looks)
    models = before | {role: {"inputs": inputs, "result": result}}
    write_json(path, {"format": _FORMAT, "models": models})
    return result


def _stored(path: Path) -> dict[str, Any]:
    try:
        found = read_json_file(path)
        return dict(found["models"]) if found["format"] == _FORMAT else {}
    except (DataError, KeyError, TypeError, ValueError):
        return {}  # measured again: it is no more than minutes, and nothing is built on it
