"""The val_loss of model directories, by all processes of a run together."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.tokens import TokenDirectory
from inheritune.steps.job import Job

if TYPE_CHECKING:
    from inheritune.evaluate.val_loss import ValLoss

__all__ = ["finite", "val_loss_of", "val_loss_share"]


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
    from inheritune.evaluate.val_loss import measure_val_loss
    from inheritune.train.settings import choose_device
    from inheritune.train.weights import load_model

    model: Any = load_model(directory)
    return measure_val_loss(
        model.to(choose_device()),
        tokens.val,
        job.recipe.train.seq_len,
        job.recipe.evaluate.batch_size,
        job.stop,
        job.on_progress,
        task,
        job.processes,
    )


def finite(value: float) -> float | None:
    """A number that JSON can say; None for NaN, such as the standard error of one window."""
    return value if math.isfinite(value) else None
