"""Analyse the attention and layers of a run's reference and target; a failure is only a note."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.analysis.advice import laziest_first
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, InherituneError, Interrupted
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.recipe.schema import Analyze, Recipe
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.selection import asks_for_scores, run_scores
from inheritune.steps.training_spec import selection_of
from inheritune.surgery.selection import needed_measurement
from inheritune.system.files import write_json
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json, refuse_wrong_types

if TYPE_CHECKING:
    from inheritune.analysis.sequences import Sequences


_FORMAT = 1  # of analysis.json
_FEWEST = 2  # sequences below which nothing is measured
_REMOVAL_SEQUENCES = 20


def asks_for_measurements(recipe: Recipe) -> bool:
    """Whether a recipe needs anything measured on the reference before it is cut."""
    return _asks_for_ranks(recipe) or asks_for_scores(recipe)


def _asks_for_ranks(recipe: Recipe) -> bool:
    selections = [selection_of(recipe, name) for name in recipe.variants]
    by_rank = "layers_by_rank" in map(needed_measurement, selections)
    return by_rank or recipe.inherit.layers == "advice"


def with_measurements(job: Job, reference: Reference, tokens: TokenDirectory) -> Reference:
    """Add to the reference what the recipe chooses layers by: attention ranks, scores.

    Raises:
        UnsupportedModelError: Its attention cannot be observed.
        DataError: The validation set is too short for a sequence.
    """
    from inheritune.analysis.analyze import layer_advice

    if asks_for_scores(job.recipe):
        reference = replace(reference, scores=run_scores(job, reference.model, tokens))
    if not _asks_for_ranks(job.recipe):
        return reference
    entry = _measured(job, reference.model, "reference", _draw(job, tokens), tokens)
    ranks = _max_ranks(entry)
    advice = layer_advice(reference.model, ranks)
    message = f"advice: {advice.advice} layers; {advice.reason}"
    job.on_progress(Progress("analysis", message=message))
    return replace(reference, advised_layers=advice.advice, layers_by_rank=laziest_first(ranks))


def analyze_run(
    job: Job, reference: Reference, tokens: TokenDirectory, target: Path
) -> tuple[dict[str, Any] | None, list[str]]:
    """Analyse reference and target on the same sequences of the validation set.

    Args:
        job: The run.
        reference: The model that was inherited from.
        tokens: The run's tokens.
        target: Model directory of the target.

    Returns:
        The entry of run.json, None where nothing was measured; and notes on what was not.

    Raises:
        Interrupted: Asked to stop; what was trained is complete.
    """
    from inheritune.analysis.analyze import analysis_record, layer_advice

    if job.recipe.analyze is None:
        return None, []
    try:
        sequences = _draw(job, tokens)
    except DataError as error:
        return None, [f"Attention was not analysed: {error.message}"]
    entries, notes = [], _shortage_notes(sequences)
    for role, model in (("reference", reference.model), ("target", open_model(str(target)))):
        try:
            entries.append(_measured(job, model, role, sequences, tokens))
        except Interrupted:
            raise
        except InherituneError as error:
            notes.append(f"The attention of the {role} was not analysed: {error.message}")
        except Exception as error:
            # The training is done: whatever a model's class trips over, the result stands.
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            notes.append(f"The attention of the {role} was not analysed: {reason}")
    if not entries:
        return None, notes
    advice = None
    if entries[0]["role"] == "reference":
        advice = asdict(layer_advice(reference.model, _max_ranks(entries[0])))
    threshold = _settings(job.recipe).threshold
    return analysis_record(sequences, threshold, entries, advice) | {"notes": notes}, notes


def _settings(recipe: Recipe) -> Analyze:
    return recipe.analyze or Analyze()


def _draw(job: Job, tokens: TokenDirectory) -> "Sequences":
    from inheritune.analysis.sequences import draw_sequences

    settings = _settings(job.recipe)
    length = settings.tokens_per_sequence
    bos = tokens.manifest["policy"].get("bos")
    source = "the run's validation set"
    sequences = draw_sequences(tokens.val, settings.sequences, length, bos, source)
    if len(sequences.ids) < min(_FEWEST, settings.sequences):
        raise DataError(
            f"the validation set has {tokens.val.num_ids} tokens, too few for sequences of "
            f"{length}.",
            "Lower analyze.tokens_per_sequence, or hold more text out.",
        )
    return sequences


def _shortage_notes(sequences: "Sequences") -> list[str]:
    """Say that the text was too short for the sequences that were asked for, if it was."""
    count, length = sequences.ids.shape
    if count == sequences.asked:
        return []
    return [
        f"Attention was analysed on {count} sequences of {length} tokens, not on "
        f"{sequences.asked}: the text has no more."
    ]


def _measured(
    job: Job, model: ModelDirectory, role: str, sequences: "Sequences", tokens: TokenDirectory
) -> dict[str, Any]:
    """Measure a model, or take the entry of analysis.json that was made from the same inputs."""
    from inheritune.analysis.analyze import analyze_model

    path, threshold = job.run.analysis, _settings(job.recipe).threshold
    inputs = {
        "digest": model.digest,
        "tokens": tokens.val_fingerprint,
        "threshold": threshold,
        "removal_sequences": _REMOVAL_SEQUENCES,
        "sequences": sequences.as_json(),
    }
    stored = _stored(path)
    entry = stored.get(role)
    if isinstance(entry, dict) and entry.get("inputs") == inputs:
        with refuse_wrong_types(path):
            _max_ranks(entry["result"])
            return dict(entry["result"], role=role)
    result = analyze_model(
        model,
        role,
        sequences,
        threshold=threshold,
        removal_sequences=_REMOVAL_SEQUENCES,
        stop=job.stop,
        on_progress=job.on_progress,
    ).as_json()
    models = stored | {role: {"inputs": inputs, "result": result}}
    write_json(path, {"format": _FORMAT, "models": models})
    return result


def _max_ranks(entry: Mapping[str, Any]) -> dict[int, float]:
    """MaxRank by layer, from an entry of analysis.json."""
    return {int(row["layer"]): float(row["max_rank"]) for row in entry["attention"]["layers"]}


def _stored(path: Path) -> dict[str, Any]:
    try:
        analysis = read_json(path)
        return dict(analysis["models"]) if analysis["format"] == _FORMAT else {}
    except (DataError, KeyError, TypeError, ValueError):
        return {}  # measured again: it takes minutes at most, and nothing is built on it
