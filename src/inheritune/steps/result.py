"""Measure a published model, and put together what a run keeps of its training."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from inheritune.errors import DivergedError
from inheritune.model_files.directory import open_model
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.steps.distillation import reference_cost
from inheritune.steps.repaired_start import RECORD
from inheritune.steps.training_task import TrainingTask
from inheritune.steps.validation import finite, val_loss_of
from inheritune.system.files import write_json
from inheritune.system.progress import Progress
from inheritune.system.reading import read_lines
from inheritune.system.rows import Rows
from inheritune.system.strict_json import read_json_object

if TYPE_CHECKING:
    from inheritune.evaluation.val_loss import ValLoss
    from inheritune.training.loop_config import LoopResult
    from inheritune.training.metrics import OnRow


# The start of a model that was made of a trained one and untrained layers of the reference.
PATCHED = "patched"


@dataclass(frozen=True)
class TrainingResult:
    """A completed and measured training: ``result`` of result.json, in the order it has there."""

    name: str  # the variant's name
    start: str  # the variant's ``start``
    layers: int  # transformer layers
    params: int  # parameters, tied ones once
    tokens: int  # training tokens, repeats counted
    epochs: float  # ``tokens`` / training tokens of the text
    start_val_loss: float | None  # nats per token before the first step; None: not measured
    val_loss: float  # nats per held-out token, of the published model
    val_loss_se: float | None  # standard error over windows
    difference: float  # val_loss - reference loss, mean over windows; 0 for the reference itself
    difference_se: float | None  # its standard error over windows
    seconds: float  # wall-clock time of training and validations, over all restarts
    flops_per_token: float  # training FLOPs of the model alone, per token
    flops: float  # everything: training, validations, and ``reference_flops``
    restarts: int  # how often the training was continued from a checkpoint
    skipped: int  # optimizer steps skipped because a value was not finite
    path: str  # the training's directory within the run
    settings: dict[str, Any]  # device, precision and kernels that were used
    notes: list[str]  # messages of the training
    windows: list[float]  # loss of every validation window, nats per token
    first_sample: int = 0  # above 0: it continued from a smaller model that was trained in this run
    made_of: str = ""  # the start in words; empty where ``start`` says it all
    distill: dict[str, Any] | None = None  # the variant's section `distill`
    reference_flops: float = 0.0  # forward passes of the reference of a distillation
    seed: int | None = None  # seed of data order and fresh weights
    dtype: str = "F32"  # dtype of the published weights, as in a safetensors header
    bytes: int | None = None  # size of the published weights
    # val_loss of the weights before they were rounded; None: they are fp32
    fp32_val_loss: float | None = None
    # How close its predictions are to the reference's, with FLOPs and seconds; None: not measured
    fidelity: dict[str, Any] | None = None
    # By how much its tasks lie below the reference's: ``mean`` and ``se``; None: not asked
    task_loss: dict[str, Any] | None = None
    # Of a repaired start: method, tokens, the cut's val_loss before the repair, FLOPs and seconds;
    # under "shared", what was made for another training, whose FLOPs are not among these
    repair: dict[str, Any] | None = None
    # Layers of the reference that it has; None: it inherited none, or an older version made it
    kept: list[int] | None = None

    @property
    def is_patched(self) -> bool:
        """Whether it is a trained model with layers put back, and was not trained itself."""
        return self.start == PATCHED

    @property
    def is_moved_by_rounding(self) -> bool:
        """Whether rounding the weights raised val_loss by more than its standard error."""
        if self.fp32_val_loss is None or self.val_loss_se is None:
            return False
        return self.val_loss - self.fp32_val_loss > self.val_loss_se

    @property
    def fp32_difference(self) -> float:
        """``difference`` of the weights before they were rounded."""
        rounding = 0.0 if self.fp32_val_loss is None else self.val_loss - self.fp32_val_loss
        return self.difference - rounding

    @property
    def in_fp32(self) -> Self:
        """The same with the losses of the weights before they were rounded."""
        return replace(self, difference=self.fp32_difference, fp32_val_loss=None)

    def summary(self) -> dict[str, Any]:
        """The entry of run.json: everything but the windows."""
        fields = asdict(self)
        del fields["windows"]
        return fields

    @property
    def training_flops(self) -> float:
        """FLOPs without validations, but with a repair of the start, whoever it was made for."""
        repair = self.repair or {"flops": 0.0}
        shared = sum(float(part["flops"]) for part in repair.get("shared", {}).values())
        repair_flops = float(repair["flops"]) + shared
        return self.flops_per_token * self.tokens + self.reference_flops + repair_flops

    def cost(self) -> dict[str, Any]:
        """The fields that travel with the weights, so that a later run knows what they cost."""
        keys = ("tokens", "flops", "seconds", "val_loss", "val_loss_se")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class TrainedVariant(Rows):
    """The result of training one variant of a recipe.

    Attributes:
        model: Directory of the trained model.
        training: Losses, cost and settings of its training, against the reference loss.
    """

    model: Path
    training: TrainingResult

    def as_json(self) -> dict[str, Any]:
        """Return the training as in run.json, and the model's directory."""
        return self.training.summary() | {"model": str(self.model)}

    def rows(self) -> list[dict[str, Any]]:
        """One row: size, losses and cost."""
        return [{k: v for k, v in self.as_json().items() if not isinstance(v, list | dict)}]


@dataclass(frozen=True)
class Measurement:
    """The val_loss of a published model."""

    loss: "ValLoss"  # in the mean and per window
    seconds: float  # wall-clock time of the measurement
    times: int  # number of validations of the training, this one included
    # val_loss of the weights before they were rounded; None: they are fp32
    fp32_val_loss: float | None = None


def measure_published(task: TrainingTask, on_row: "OnRow") -> Measurement:
    """Measure ``model/`` and write the last row of `metrics.jsonl`, which ``on_row`` is given too.

    Raises:
        DivergedError: The val_loss is not finite.
        Interrupted: A signal asked to stop; the model is measured when the run continues.
    """
    from inheritune.training.metrics import record_end

    title = f"{task.title}, val_loss"
    loss, seconds = val_loss_of(task.job, task.model_dir, task.tokens, title)
    if not math.isfinite(loss.mean):
        raise DivergedError(
            f"{task.title}: its val_loss is {loss.mean}.",
            "Lower train.learning_rate in a run of another name.",
        )
    times = record_end(task.directory / "metrics.jsonl", loss.mean, on_row)
    message, fp32_val_loss = f"at its end: val_loss {loss.mean:.4f}", None
    if task.dtype != "F32":
        title = f"{task.title}, val_loss in fp32"
        master, master_seconds = val_loss_of(task.job, task.master_dir, task.tokens, title)
        fp32_val_loss, seconds, times = master.mean, seconds + master_seconds, times + 1
        message += f" in {task.dtype}, {loss.mean - master.mean:+.5f} to fp32"
    task.job.on_progress(Progress(task.title, message=message))
    return Measurement(loss, seconds, times, fp32_val_loss)


def make_result(
    task: TrainingTask,
    loop_result: "LoopResult",
    measurement: Measurement,
    reference_windows: list[float] | None,
) -> TrainingResult:
    """Put together the result of a training; the reference's goes beside its weights, too.

    Args:
        reference_windows: The reference's loss per window, nats per token; None for the reference
            itself.
    """
    from inheritune.evaluation.val_loss import paired_difference
    from inheritune.training.models import describe

    # --- losses ---
    loss = measurement.loss
    difference, difference_se = 0.0, math.nan
    if reference_windows is not None:
        difference, difference_se = paired_difference(loss.per_window, np.array(reference_windows))

    # --- cost: training tokens whole, validation tokens by the forward pass's share ---
    seq_len, position = task.train.seq_len, loop_result.position
    shape = describe(task.model_dir, seq_len)
    val_tokens = loss.tokens * measurement.times
    reference_flops, reference_seconds = 0.0, 0.0
    if task.spec.distill is not None:
        reference_flops, reference_seconds = reference_cost(task, position.tokens)
    seconds = loop_result.seconds + measurement.seconds + reference_seconds
    trained = describe(task.model_dir, seq_len, task.train.only)
    own_flops = trained.flops_per_token * position.tokens
    own_flops += shape.flops_per_token * EVALUATION_SHARE * val_tokens
    repair = None
    if task.spec.repair != "none":
        repair = read_json_object(task.directory / RECORD)
        own_flops += repair["flops"]
        seconds += repair["seconds"]

    result = TrainingResult(
        name=task.spec.variant,
        start=task.spec.start,
        layers=task.spec.layers,
        params=shape.params,
        tokens=position.tokens,
        epochs=position.tokens / (task.tokens.train.num_samples(seq_len) * seq_len),
        start_val_loss=loop_result.start_val_loss,
        val_loss=loss.mean,
        val_loss_se=finite(loss.se),
        difference=difference,
        difference_se=finite(difference_se),
        seconds=seconds,
        flops_per_token=trained.flops_per_token,
        flops=own_flops + reference_flops,
        restarts=loop_result.restarts,
        skipped=position.skipped,
        path=task.directory.relative_to(task.job.run.root).as_posix(),
        settings=loop_result.settings.record(),
        notes=[*loop_result.notes, *_rounding_notes(task.dtype, measurement)],
        windows=loss.per_window.tolist(),
        first_sample=task.spec.first_sample,
        made_of=task.spec.made_of,
        distill=task.spec.distill,
        reference_flops=reference_flops,
        dtype=task.dtype,
        bytes=sum(t.size for t in open_model(str(task.model_dir)).tensors.values()),
        fp32_val_loss=measurement.fp32_val_loss,
        repair=repair,
        kept=list(task.spec.layer_map) if task.spec.start in ("inherit", "grown") else None,
    )
    if reference_windows is None:
        processes = {"processes": loop_result.settings.processes}
        curve = _curve(task.directory / "metrics.jsonl")
        write_json(task.model_dir / "training.json", result.cost() | processes | {"curve": curve})
    return result


def _rounding_notes(dtype: str, measurement: Measurement) -> list[str]:
    """Say by how much val_loss changed when the weights were rounded to the published dtype."""
    if measurement.fp32_val_loss is None:
        return []
    loss, se = measurement.loss.mean, measurement.loss.se
    moved = loss - measurement.fp32_val_loss
    note = f"Published in {dtype}: val_loss {moved:+.5f} against the fp32 weights"
    if moved > se:
        note += (
            f", more than a standard error ({se:.5f}), which is no match. Set target.dtype to fp32 "
            "in a run of another name"
        )
    return [f"{note}."]


def _curve(metrics: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in read_lines(metrics)]
    return [
        {"tokens": row["tokens"], "val_loss": row["val_loss"]} for row in rows if "val_loss" in row
    ]
