"""Measure how close a trained model's predictions are to its reference's, and keep that."""

import time
from collections.abc import Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, InherituneError, Interrupted, MachineError, first_line
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.schema import Recipe
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.resume import save_result
from inheritune.system.memory import free_memory
from inheritune.system.progress import Progress
from inheritune.system.strict_json import read_json

FILE = "fidelity.json"  # in the directory of a training
_FP32_BYTES = 4
_ROOM = 1.5  # for activations and logits, beside the weights


def needs_fidelity(recipe: Recipe) -> bool:
    """Whether a target is judged by how close its predictions are."""
    return recipe.grow.match.kl is not None or recipe.grow.match.top1 is not None


def refuse_unmeasurable(recipe: Recipe, reference: Reference) -> None:
    """Refuse criteria that this machine cannot measure, before anything is trained.

    Raises:
        MachineError: Reference and target do not fit into its memory together.
    """
    if needs_fidelity(recipe):
        try:
            refuse_small_memory(reference.model, reference.model)
        except MachineError as error:
            raise MachineError(
                f"grow.match.kl and top1 compare predictions: {error.message}",
                "Leave them out, or take a machine with more memory.",
            ) from error


def with_fidelity(
    job: Job, result: TrainingResult, reference: Reference, tokens: TokenDirectory
) -> TrainingResult:
    """Add to a result how close the published model is to the reference, on all windows.

    A failure is only a message, unless a target is judged by it.

    Raises:
        Interrupted: A signal asked to stop; the training is complete.
        InherituneError: It cannot be measured, and a criterion needs it.
    """
    is_needed = needs_fidelity(job.recipe) and result.name == job.recipe.target_name
    if not (job.recipe.evaluate.gains or needs_fidelity(job.recipe)):
        return result
    title = f"{result.name}, {result.layers} layers"
    try:
        return replace(result, fidelity=_measured(job, result, reference, tokens))
    except Interrupted:
        raise
    except InherituneError as error:
        if is_needed:
            raise
        reason = error.message
    except Exception as error:
        if is_needed:
            raise
        # The model is trained: whatever its class trips over, the result stands.
        reason = f"{type(error).__name__}: {first_line(error)}."
    message = f"its fidelity was not measured: {reason}"
    job.on_progress(Progress(title, message=message))
    return result


def comparison_inputs(
    job: Job, reference: Reference, published: ModelDirectory, tokens: TokenDirectory
) -> dict[str, Any]:
    """Return what a comparison of a published model with the reference is measured from."""
    return {
        "reference": reference.model.digest,
        "target": published.digest,
        "tokens": tokens.val_fingerprint,
        "seq_len": job.recipe.train.seq_len,
        "batch_size": job.recipe.evaluate.batch_size,
    }


def _measured(
    job: Job, result: TrainingResult, reference: Reference, tokens: TokenDirectory
) -> dict[str, Any]:
    from inheritune.evaluation.fidelity import measure_fidelity
    from inheritune.training.models import describe

    directory = job.run.root / result.path
    published = open_model(str(directory / "model"))
    inputs = comparison_inputs(job, reference, published, tokens)
    seq_len, batch_size = job.recipe.train.seq_len, job.recipe.evaluate.batch_size
    if (stored := stored_result(directory / FILE, inputs, {"kl", "top1", "flops"})) is not None:
        return stored
    refuse_small_memory(reference.model, published)
    began = time.monotonic()
    first, second = (_loaded(model) for model in (reference.model, published))
    fidelity = measure_fidelity(
        first, second, tokens.val, seq_len, batch_size, job.stop, job.on_progress
    )
    flops_each = reference.flops_per_token + describe(published.path, seq_len).flops_per_token
    measured = asdict(fidelity) | {
        "flops": fidelity.tokens * flops_each * EVALUATION_SHARE,
        "seconds": round(time.monotonic() - began, 1),
    }
    save_result(directory / FILE, inputs, measured)
    return measured


def _loaded(model: ModelDirectory) -> Any:
    from inheritune.training.hardware import choose_device
    from inheritune.training.models import load_model

    loaded: Any = load_model(model.path)
    return loaded.to(choose_device())


def stored_result(path: Path, inputs: dict[str, Any], keys: Set[str]) -> dict[str, Any] | None:
    """What was measured before from the same inputs; None: measure, it takes minutes at most.

    Args:
        keys: What the result has at least.
    """
    try:
        stored = read_json(path)
        result = dict(stored["result"])
        return result if stored["inputs"] == inputs and keys <= result.keys() else None
    except (DataError, KeyError, TypeError, ValueError):
        return None


def refuse_small_memory(*models: ModelDirectory) -> None:
    """Refuse to hold both models where the system would kill the run for it, again at every start.

    Raises:
        MachineError: The free memory is too small for both in fp32.
    """
    from inheritune.training.hardware import choose_device

    free = free_memory()
    needed = round(sum(model.params for model in models) * _FP32_BYTES * _ROOM)
    if choose_device() == "cpu" and free is not None and free < needed:
        raise MachineError(
            f"{needed:,} bytes of memory are needed for both models, {free:,} are free."
        )
