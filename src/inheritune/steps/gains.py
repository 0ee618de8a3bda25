"""Measure what a run's target gains against its reference; a failure is only a note."""

import time
from dataclasses import dataclass
from typing import Any

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import InherituneError, Interrupted, first_line
from inheritune.model_files.directory import open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.steps.fidelity import comparison_inputs, refuse_small_memory, stored_result
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.resume import save_result
from inheritune.system.progress import Progress


@dataclass(frozen=True)
class MeasuredGains:
    """Size, speed and fidelity of reference and target, and what it cost to measure them.

    Attributes:
        record: `gains` of run.json.
        rows: A short row for each model, as `run --json` prints it.
        flops: Forward passes of both models.
        seconds: Wall-clock time, loading included.
    """

    record: dict[str, Any]
    rows: list[dict[str, Any]]
    flops: float
    seconds: float


def gains_of(
    job: Job, reference: Reference, target: TrainingResult, tokens: TokenDirectory
) -> tuple[MeasuredGains | None, list[str]]:
    """Measure the published target and its reference in turn, or read what was measured before.

    Returns:
        The measurements, None where the recipe asks for none or they failed; and notes on failures.

    Raises:
        Interrupted: A signal asked to stop; what was trained is complete.
    """
    if not job.recipe.evaluate.gains:
        return None, []
    try:
        return _measured(job, reference, target, tokens), []
    except Interrupted:
        raise
    except InherituneError as error:
        reason = f"{error.message} {error.hint}".strip()
    except Exception as error:
        # Everything is trained: whatever a model's class trips over, the result stands.
        reason = f"{type(error).__name__}: {first_line(error)}."
    note = f"Size and speed were not measured: {reason}"
    job.on_progress(Progress("gains", message=note))
    return None, [note]


def _measured(
    job: Job, reference: Reference, target: TrainingResult, tokens: TokenDirectory
) -> MeasuredGains:
    from inheritune.evaluation.fidelity import Fidelity
    from inheritune.evaluation.gains import measure_gains

    published = open_model(str(job.run.target))
    inputs = comparison_inputs(job, reference, published, tokens)
    seq_len, batch_size = job.recipe.train.seq_len, job.recipe.evaluate.batch_size
    keys = set(MeasuredGains.__dataclass_fields__)
    if (stored := stored_result(job.run.gains, inputs, keys)) is not None:
        return MeasuredGains(**stored)
    refuse_small_memory(reference.model, published)
    began = time.monotonic()
    names, known = Fidelity.__dataclass_fields__.keys(), target.fidelity or {}
    fidelity = [Fidelity(**{name: known[name] for name in names})] if names <= known.keys() else []
    gains = measure_gains(
        [("reference", reference.model), ("target", published)],
        tokens.val,
        seq_len,
        batch_size,
        stop=job.stop,
        on_progress=job.on_progress,
        known=fidelity,
    )
    measured_now = () if fidelity else gains.fidelity  # else its cost is that of the training
    num_tokens = gains.forward_tokens + sum(one.tokens for one in measured_now if one)
    flops_per_token = reference.flops_per_token + target.flops_per_token
    measured = MeasuredGains(
        record=gains.as_json(),
        rows=gains.rows(),
        flops=num_tokens * flops_per_token * EVALUATION_SHARE,
        seconds=round(time.monotonic() - began, 1),
    )
    save_result(job.run.gains, inputs, vars(measured))
    return measured
