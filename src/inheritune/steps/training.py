"""One training from a start directory to a measured model directory."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.data.tokens import TokenDirectory
from inheritune.durable import write_json
from inheritune.errors import DivergedError
from inheritune.progress import Progress
from inheritune.steps.job import Job, finish, finished

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.evaluate.val_loss import ValLoss
    from inheritune.train.loop import Trained

__all__ = ["Arm", "Trial", "finite", "run_training", "training_inputs", "val_loss_of"]

# Keys of `train` that do not decide where a training ends, beyond rounding: they may change
# between two starts.
_FREE_KEYS = {"save_minutes", "keep", "eval_every", "nonfinite", "max_skips", "micro_batch"}


@dataclass(frozen=True)
class Arm:
    """One training to be done.

    Attributes:
        variant: Name in the recipe.
        start: ``"inherit"`` or ``"fresh"``.
        layers: Of the model trained.
        tokens: Training tokens, repeats counted.
    """

    variant: str
    start: str
    layers: int
    tokens: int

    @property
    def task(self) -> str:
        """Name shown with the progress and in the ledger."""
        return f"{self.variant}, {self.layers} layers"


@dataclass(frozen=True)
class Trial:
    """One training done and measured. `difference` is val_loss - benchmark, window by window."""

    name: str
    start: str
    layers: int
    params: int
    tokens: int
    epochs: float
    start_val_loss: float | None
    val_loss: float
    val_loss_se: float | None
    difference: float
    difference_se: float | None
    seconds: float
    flops_per_token: float
    flops: float
    restarts: int
    skipped: int
    path: str
    settings: dict[str, Any]
    notes: list[str]
    windows: list[float]

    def summary(self) -> dict[str, Any]:
        """For run.json: everything but the windows."""
        fields = asdict(self)
        del fields["windows"]
        return fields


def training_inputs(job: Job, tokens: TokenDirectory) -> dict[str, Any]:
    """What decides the result of every training of a run."""
    return {
        "train": job.recipe.train.model_dump(mode="json", exclude=_FREE_KEYS | {"tokens"}),
        "tokens": tokens.fingerprint,
        "evaluate": job.recipe.evaluate.model_dump(mode="json"),
    }


def run_training(
    job: Job,
    arm: Arm,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    benchmark: list[float] | None = None,
) -> Trial:
    """Train what stands in ``start/``, publish it as ``model/``, and measure what was published.

    Args:
        job: Recipe, run, whom to ask and to tell.
        arm: What to train, for how long.
        folder: The training's own directory; holds ``start/``, with weights or a config alone.
        tokens: To train and to validate on.
        inputs: All that decides the result.
        benchmark: The reference's loss per window, nats per token; None for the reference itself.

    Returns:
        The trial, as `result.json` keeps it.
    """
    path = folder / "result.json"
    done = finished(path, inputs)
    if done is None:
        trained = _train(job, arm, folder, tokens, inputs)
        done = asdict(_measure(job, arm, folder, tokens, trained, benchmark))
        finish(path, inputs, done)
    # The result stands; only now is what it could be made from again let go.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return Trial(**done)


def _train(
    job: Job, arm: Arm, folder: Path, tokens: TokenDirectory, inputs: Mapping[str, Any]
) -> "Trained":
    from inheritune.evaluate.val_loss import measure_val_loss
    from inheritune.train.loop import Plan, train
    from inheritune.train.settings import choose_settings
    from inheritune.train.weights import describe, fresh_model, load_model, save_model

    recipe, start = job.recipe.train, folder / "start"
    batch_size = job.recipe.evaluate.batch_size
    flops = describe(start, recipe.seq_len).flops_per_token * arm.tokens
    if arm.start == "inherit":
        model = load_model(start, recipe.dropout)
    else:
        model = fresh_model(start, recipe.seed, recipe.dropout)

    def measure(model: "PreTrainedModel") -> float:
        return measure_val_loss(model, tokens.val, recipe.seq_len, batch_size, job.stop).mean

    plan = Plan(arm.task, tokens.train, arm.tokens, inputs)
    settings = choose_settings(recipe, flops)
    trained = train(model, recipe, plan, settings, folder, measure, job.stop, job.on_progress)
    for note in trained.notes:
        job.on_progress(Progress(arm.task, message=note))
    # One that is there without a result.json was left by a kill: it may be of other inputs.
    shutil.rmtree(folder / "model", ignore_errors=True)
    save_model(model, folder / "model", start)
    return trained


def _measure(
    job: Job,
    arm: Arm,
    folder: Path,
    tokens: TokenDirectory,
    trained: "Trained",
    benchmark: list[float] | None,
) -> Trial:
    from inheritune.evaluate.val_loss import paired_difference
    from inheritune.train.throughput import EVALUATION_SHARE
    from inheritune.train.weights import describe

    seq_len, position = job.recipe.train.seq_len, trained.position
    loss, eval_s = val_loss_of(job, folder / "model", tokens, f"{arm.task}, val_loss")
    difference, difference_se = 0.0, math.nan
    if benchmark is not None:
        difference, difference_se = paired_difference(loss.per_window, np.array(benchmark))
    if not math.isfinite(loss.mean):
        raise DivergedError(
            f"{arm.task}: its val_loss is {loss.mean}.",
            "Lower train.learning_rate in a run of another name.",
        )
    shape = describe(folder / "model", seq_len)
    curve = _curve(folder / "metrics.jsonl")
    val_tokens = loss.tokens * (len(curve) + 1)
    trial = Trial(
        name=arm.variant,
        start=arm.start,
        layers=arm.layers,
        params=shape.params,
        tokens=position.tokens,
        epochs=position.tokens / (tokens.train.num_samples(seq_len) * seq_len),
        start_val_loss=trained.start_val_loss,
        val_loss=loss.mean,
        val_loss_se=finite(loss.se),
        difference=difference,
        difference_se=finite(difference_se),
        seconds=trained.seconds + eval_s,
        flops_per_token=shape.flops_per_token,
        flops=shape.flops_per_token * (position.tokens + val_tokens * EVALUATION_SHARE),
        restarts=trained.restarts,
        skipped=position.skipped,
        path=folder.relative_to(job.run.root).as_posix(),
        settings=trained.settings.record(),
        notes=list(trained.notes),
        windows=loss.per_window.tolist(),
    )
    if benchmark is None:
        # Travels with a reference, so that whoever inherits from it knows what its training cost.
        kept = ("tokens", "flops", "seconds", "val_loss", "val_loss_se")
        ledger = {key: value for key, value in asdict(trial).items() if key in kept}
        write_json(folder / "model" / "training.json", ledger | {"curve": curve})
    return trial


def _curve(metrics: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [
        {"tokens": row["tokens"], "val_loss": row["val_loss"]} for row in rows if "val_loss" in row
    ]


def val_loss_of(
    job: Job, directory: Path, tokens: TokenDirectory, task: str
) -> "tuple[ValLoss, float]":
    """The val_loss of a model directory, and the seconds it took."""
    from inheritune.evaluate.val_loss import measure_val_loss
    from inheritune.train.settings import choose_device
    from inheritune.train.weights import load_model

    began = time.monotonic()
    model: Any = load_model(directory)
    loss = measure_val_loss(
        model.to(choose_device()),
        tokens.val,
        job.recipe.train.seq_len,
        job.recipe.evaluate.batch_size,
        job.stop,
        job.on_progress,
        task,
    )
    return loss, time.monotonic() - began


def finite(value: float) -> float | None:
    """A number that JSON can say; None for NaN, such as the standard error of one window."""
    return value if math.isfinite(value) else None
