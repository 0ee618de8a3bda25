"""Measure the val_loss of model directories, in all processes of a run together."""

import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.tokens import TokenDirectory
from inheritune.steps.job import Job
from inheritune.steps.limits import memory_named

if TYPE_CHECKING:
    from inheritune.evaluation.val_loss import ValLoss


def val_loss_of(
    job: Job, directory: Path, tokens: TokenDirectory, task: str
) -> "tuple[ValLoss, float]":
    """Measure a model directory; returns its val_loss and the seconds that this took."""
    began = time.monotonic()
    paths = {"directory": str(directory.resolve()), "tokens": str(tokens.path.resolve())}
    job.processes.post({"do": "measure", "task": task} | paths)
    return val_loss_share(job, directory, tokens, task), time.monotonic() - began


def val_loss_share(job: Job, directory: Path, tokens: TokenDirectory, task: str) -> "ValLoss":
    """Do this process's share of a measurement; every process returns the whole val_loss."""
    from inheritune.evaluation.val_loss import measure_val_loss
    from inheritune.training.hardware import choose_device
    from inheritune.training.models import load_model

    batch_size = job.recipe.evaluate.batch_size
    with enough_memory_to_validate(batch_size):
        model: Any = load_model(directory)
        return measure_val_loss(
            model.to(choose_device()),
            tokens.val,
            job.recipe.train.seq_len,
            batch_size,
            job.stop,
            job.on_progress,
            task,
            job.processes,
        )


def enough_memory_to_validate(batch_size: int) -> AbstractContextManager[None]:
    """Name ``evaluate.batch_size`` where a forward pass runs out of memory, see `memory_named`."""
    otherwise = "Take a machine or device with more memory"
    return memory_named("evaluate.batch_size", batch_size, batch_size // 2, otherwise)


def finite(value: float) -> float | None:
    """A number that JSON can hold; None for NaN, such as the standard error of one window."""
    return value if math.isfinite(value) else None
