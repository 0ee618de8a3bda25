"""The val_loss of model directories, by all processes of a run together."""

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

__all__ = ["enough_memory_to_validate", "finite", "val_loss_of", "val_loss_share"]


def val_loss_of(
    job: Job, directory: Path, tokens: TokenDirectory, task: str
) -> "tuple[ValLoss, float]":
    """The val_loss of a model directory, and the seconds it took."""
    began = time.monotonic()
    places = {"directory": str(directory.resolve()), "tokens": str(tokens.path.resolve())}
    job.processes.post({"do": "measure", "task": task} | places)
    return val_loss_share(job, directory, tokens, task), time.monotonic() - began


def val_loss_share(job: Job, directory: Path, tokens: TokenDirectory, task: str) -> "ValLoss":
    """This process's part of `val_loss_of`, and the whole in the end."""
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
    """See `memory_named`: for a forward pass over so many windows."""
    otherwise = "Take a machine or device with more memory"
    return memory_named("evaluate.batch_size", batch_size, otherwise)


def finite(value: float) -> float | None:
    """A number that JSON can say; None for NaN, such as the standard error of one window."""
    return value if math.isfinite(value) else None
