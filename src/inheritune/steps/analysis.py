"""Analyse the attention and layers of a run's reference and target; a failure is only a note.

What is reported is measured on the validation set. What layers are chosen by is measured on
training text: a choice must not know the text that its result is measured on.
"""

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
from inheritune.steps.tournament import with_winner
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
_CHOICE = "choice"  # entry of analysis.json: the reference on training text, to choose layers by


def asks_for_measurements(recipe: Recipe) -> bool:
    """Whether a recipe needs anything measured on the reference before it is cut."""
    return bool(_chosen_by_rank(recipe)) or asks_for_scores(recipe)


def _chosen_by_rank(recipe: Recipe) -> set[str]:
    """Name the variants of which the layers, or their number, are chosen by attention rank."""
    advised = {recipe.target_name} if recipe.inherit.layers == "advice" else set()
    selections = {name: selection_of(recipe, name) for name in recipe.variants}
    return advised | {n for n, s in selections.items() if needed_measurement(s) == "layers_by_rank"}


def with_measurements(job: Job, reference: Reference, tokens: TokenDirectory) -> Reference:
    """Add to the reference what the recipe chooses layers by: attention ranks, scores.

    Raises:
        UnsupportedModelError: Its attention cannot be observed.
        DataError: The training text is too short for a sequence.
    """
    from inheritune.analysis.analyze import layer_advice

    if asks_for_scores(job.recipe):
        reference = replace(reference, scores=run_scores(job, reference.model, tokens))
        reference = with_winner(job, reference, tokens)
    if not _chosen_by_rank(job.recipe):
        return reference
    role = "reference" if _chose_by_validation(job) else _CHOICE
    entry = _measured(job, reference.model, role, _draw(job, tokens, role), tokens)
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
        sequences = _draw(job, tokens, "reference")
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


def _chose_by_validation(job: Job) -> bool:
    """Whether an earlier version has chosen layers of this run, by ranks on the validation set.

    Its trainings are continued; other ranks might choose other layers.
    """
    stored, begun = _stored(job.run.analysis), {it.variant for it in job.run.trainings()}
    is_older = "reference" in stored and _CHOICE not in stored
    return is_older and not begun.isdisjoint(_chosen_by_rank(job.recipe))


def _settings(recipe: Recipe) -> Analyze:
    return recipe.analyze or Analyze()


def _draw(job: Job, tokens: TokenDirectory, role: str) -> "Sequences":
    from inheritune.analysis.sequences import draw_sequences

    settings = _settings(job.recipe)
    length = settings.tokens_per_sequence
    bos = tokens.manifest["policy"].get("bos")
    stream, split = tokens.val, "validation set"
    if role == _CHOICE:
        stream, split = tokens.train, "training text"
    sequences = draw_sequences(stream, settings.sequences, length, bos, f"the run's {split}")
    if len(sequences.ids) < min(_FEWEST, settings.sequences):
        raise DataError(
            f"the {split} has {stream.num_ids} tokens, too few for sequences of {length}.",
            "Lower analyze.tokens_per_sequence, or give more text.",
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

    path, threshold, is_choice = job.run.analysis, _settings(job.recipe).threshold, role == _CHOICE
    inputs: dict[str, Any] = {
        "digest": model.digest,
        "tokens": tokens.fingerprint if is_choice else tokens.val_fingerprint,
        "threshold": threshold,
        "removal_sequences": 0 if is_choice else _REMOVAL_SEQUENCES,
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
        "reference" if is_choice else role,
        sequences,
        threshold=threshold,
        removal_sequences=inputs["removal_sequences"],
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
