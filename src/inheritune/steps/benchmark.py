"""Measure the reference's loss on every validation window: the loss that a target has to match."""

import math
from dataclasses import asdict, dataclass

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import SourceError
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.resume import save_result, saved_result
from inheritune.steps.validation import finite, val_loss_of
from inheritune.system.strict_json import as_dataclass

_REMOVED_KEYS = ("measured_on", "borrowed")


@dataclass(frozen=True)
class Benchmark:
    """The reference's val_loss, in the mean and per window."""

    val_loss: float  # nats per token
    val_loss_se: float | None  # standard error over windows
    bits_per_byte: float  # the same loss per byte of text, which does not depend on the tokenizer
    windows: list[float]  # loss of every window, nats per token
    tokens: int  # predicted tokens
    flops: float  # cost of the measurement
    seconds: float  # wall-clock time of the measurement
    # Number of processes that shared the measurement; None: an older file, which does not say
    processes: int | None = None


def measure_benchmark(job: Job, reference: Reference, tokens: TokenDirectory) -> Benchmark:
    """Measure the reference's val_loss, or read it where it was measured before.

    Raises:
        SourceError: The val_loss is not finite.
    """
    recipe, path = job.recipe, job.run.benchmark
    inputs = {
        "reference": reference.model.digest,
        "tokens": tokens.fingerprint,
        "seq_len": recipe.train.seq_len,
        "evaluate": {"batch_size": recipe.evaluate.batch_size},
    }
    if (stored := saved_result(job, path, inputs)) is not None:
        # Files of versions that could take another run's hold two keys more.
        fields = {key: value for key, value in stored.items() if key not in _REMOVED_KEYS}
        return as_dataclass(Benchmark, fields, path)
    loss, seconds = val_loss_of(job, reference.model.path, tokens, "benchmark")
    if not math.isfinite(loss.mean):
        raise SourceError(
            f"the val_loss of {reference.name} is {loss.mean}.", "Its weights are broken."
        )
    val_tokens = tokens.val.num_samples(recipe.train.seq_len) * recipe.train.seq_len
    bytes_per_token = tokens.val_bytes / max(tokens.val.num_ids, 1)
    benchmark = Benchmark(
        val_loss=loss.mean,
        val_loss_se=finite(loss.se),
        bits_per_byte=loss.mean / math.log(2) / bytes_per_token,
        windows=loss.per_window.tolist(),
        tokens=val_tokens,
        flops=val_tokens * reference.flops_per_token * EVALUATION_SHARE,
        seconds=seconds,
        processes=job.processes.size,
    )
    save_result(path, inputs, asdict(benchmark))
    return benchmark
