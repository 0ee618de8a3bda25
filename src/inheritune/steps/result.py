"""A training done and measured: what the run keeps of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DivergedError
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.steps.distillation import reference_cost
from inheritune.steps.job import Job
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.validation import finite, val_loss_of
from inheritune.system.files import write_json
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from inheritune.evaluation.val_loss import ValLoss
    from inheritune.training.loop import LoopResult
    from inheritune.training.metrics import OnRow

__all__ = ["Measured", "TrainingResult", "make_result", "measure_published"]


@dataclass(frozen=True)
class TrainingResult:
    """One training done and measured. `difference` is val_loss - benchmark, window by window.

    `flops` has everything that it took: `reference_flops`, of the forward passes of the reference
    of a distillation, are among them.
    """

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
    first_sample: int = 0  # above 0: it went on from a smaller model that was trained here
    made_of: str = ""  # what it began with, where start does not say it all
    distill: dict[str, Any] | None = None
    reference_flops: float = 0.0
    seed: int | None = None

    def summary(self) -> dict[str, Any]:
        """For run.json: everything but the windows."""
        fields = asdict(self)
        del fields["windows"]
        return fields

    @property
    def training_flops(self) -> float:
        """Of learning alone, without validations."""
        return self.flops_per_token * self.tokens + self.reference_flops


@dataclass(frozen=True)
class Measured:
    """The val_loss of what was published.

    Attributes:
        loss: Of the model directory.
        seconds: That it took.
        times: How often the training was validated, this time included.
    """

    loss: "ValLoss"
    seconds: float
    times: int


def measure_published(
    job: Job, arm: TrainingSpec, folder: Path, tokens: TokenDirectory, on_row: "OnRow"
) -> Measured:
    """Measure ``model/`` of a training's directory: the last row of its `metrics.jsonl`.

    Args:
        job: Recipe, run, whom to ask and to tell.
        arm: What was trained.
        folder: The training's own directory.
        tokens: Validated on.
        on_row: Is given the row.

    Raises:
        DivergedError: The val_loss is not finite.
        Interrupted: Asked to stop; it is measured again when the run goes on.
    """
    from inheritune.training.metrics import record_end

    loss, seconds = val_loss_of(job, folder / "model", tokens, f"{arm.task}, val_loss")
    if not math.isfinite(loss.mean):
        raise DivergedError(
            f"{arm.task}: its val_loss is {loss.mean}.",
            "Lower train.learning_rate in a run of another name.",
        )
    times = record_end(folder / "metrics.jsonl", loss.mean, on_row)
    job.on_progress(Progress(arm.task, message=f"at its end: val_loss {loss.mean:.4f}"))
    return Measured(loss, seconds, times)


def make_result(
    job: Job,
    arm: TrainingSpec,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    trained: "LoopResult",
    measured: Measured,
    benchmark: list[float] | None,
) -> TrainingResult:
    """What a training came to, as its `result.json` keeps it.

    A reference's is also written beside its weights, as `training.json`.

    Args:
        job: Recipe, run, whom to tell.
        arm: What was trained.
        folder: The training's own directory, with ``model/``.
        tokens: LoopResult and validated on.
        inputs: All that decides the result.
        trained: The training.
        measured: Of ``model/``.
        benchmark: The reference's loss per window, nats per token; None for the reference itself.
    """
    from inheritune.evaluation.val_loss import paired_difference
    from inheritune.training.models import describe

    seq_len, position, loss = job.recipe.train.seq_len, trained.position, measured.loss
    difference, difference_se = 0.0, math.nan
    if benchmark is not None:
        difference, difference_se = paired_difference(loss.per_window, np.array(benchmark))
    shape = describe(folder / "model", seq_len)
    val_tokens = loss.tokens * measured.times
    forwards, forwards_s = 0.0, 0.0
    if arm.distill is not None:
        forwards, forwards_s = reference_cost(job, arm, tokens, inputs, position.tokens)
    trial = TrainingResult(
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
        seconds=trained.seconds + measured.seconds + forwards_s,
        flops_per_token=shape.flops_per_token,
        flops=shape.flops_per_token * (position.tokens + val_tokens * EVALUATION_SHARE) + forwards,
        restarts=trained.restarts,
        skipped=position.skipped,
        path=folder.relative_to(job.run.root).as_posix(),
        settings=trained.settings.record(),
        notes=list(trained.notes),
        windows=loss.per_window.tolist(),
        first_sample=arm.first_sample,
        made_of=arm.made_of,
        distill=arm.distill,
        reference_flops=forwards,
    )
    if benchmark is None:
        # Travels with a reference, so that whoever inherits from it knows what its training cost.
        kept = ("tokens", "flops", "seconds", "val_loss", "val_loss_se")
        ledger = {key: value for key, value in asdict(trial).items() if key in kept}
        ledger["processes"] = trained.settings.processes
        write_json(folder / "model" / "training.json", ledger | {"curve": _curve(folder)})
    return trial


def _curve(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {"tokens": row["tokens"], "val_loss": row["val_loss"]} for row in rows if "val_loss" in row
    ]
