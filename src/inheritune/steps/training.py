"""One training from a start directory to a measured model directory."""

import gc
import json
import math
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.checkpoints.flops import EVALUATION_SHARE
from inheritune.data.tokens import TokenDirectory, check_budget
from inheritune.durable import write_json
from inheritune.errors import CheckpointError, DivergedError
from inheritune.inherit.devices import peak_of
from inheritune.progress import Progress
from inheritune.steps.abandoning import abandoned_record, tell_abandoned
from inheritune.steps.arms import Arm
from inheritune.steps.changes import decisive, warned
from inheritune.steps.chosen import checkpoint_for
from inheritune.steps.disk import refuse_full_disk
from inheritune.steps.distilling import open_distillation, reference_cost
from inheritune.steps.job import Job, finish, finished
from inheritune.steps.memory import memory_named
from inheritune.steps.tasks import asked_at
from inheritune.steps.tracking import open_trackers
from inheritune.steps.validation import enough_memory_to_validate, finite, val_loss_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.train.loop import Trained

__all__ = ["Trial", "run_training", "train_share", "training_inputs"]


@dataclass(frozen=True)
class Trial:
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
    abandoned: dict[str, Any] | None = None  # see abandoning.abandoned_record
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


def training_inputs(job: Job, tokens: TokenDirectory, arm: Arm | None = None) -> dict[str, Any]:
    """What decides the result of every training of a run; of an arm's, with what is its own."""
    train = job.recipe.train
    return {
        "train": decisive(train if arm is None else arm.settings(train)),
        "tokens": tokens.fingerprint,
        # Tasks are asked of what came out; they decide nothing about it.
        "evaluate": {"batch_size": job.recipe.evaluate.batch_size},
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
        folder: The training's own directory; holds ``start/``, with weights or a config alone,
            unless the arm has a model.
        tokens: To train and to validate on.
        inputs: All that decides the result.
        benchmark: The reference's loss per window, nats per token; None for the reference itself.

    Returns:
        The trial, as `result.json` keeps it.
    """
    path = folder / "result.json"
    done = finished(job, path, inputs)
    if done is None:
        check_budget(
            tokens,
            arm.first_sample * job.recipe.train.seq_len
            + max(arm.tokens, job.recipe.train.batch_tokens),
            job.recipe.train.seq_len,
            job.recipe.data.allow_repeat,
        )
        trained = _train(job, arm, folder, tokens, inputs)
        _let_go()
        done = asdict(_measure(job, arm, folder, tokens, trained, inputs, benchmark))
        finish(path, inputs, done)
    # The result stands; only now is what it could be made from again let go. The end itself stays
    # where a larger model may go on from it.
    saved = sorted((folder / "checkpoints").glob("*step-*"))
    for old in saved[:-1] if arm.goes_on else saved:
        shutil.rmtree(old)
    shutil.rmtree(folder / "moments", ignore_errors=True)
    if not arm.goes_on:
        (folder / "checkpoints" / "latest").unlink(missing_ok=True)
    # Results of before there were several seeds do not name theirs.
    return Trial(**(done | {"seed": arm.settings(job.recipe.train).seed}))


def _train(
    job: Job, arm: Arm, folder: Path, tokens: TokenDirectory, inputs: Mapping[str, Any]
) -> "Trained":
    from inheritune.train.state import load_weights
    from inheritune.train.weights import describe, save_model

    checkpoint = checkpoint_for(job, folder)  # refused here, before the others begin
    train = arm.settings(job.recipe.train)
    params = describe(arm.start_in(folder), train.seq_len).params
    refuse_full_disk(folder, params, train.keep, len(_steps_to_keep(job, arm)))
    place = {"arm": asdict(arm), "folder": folder.relative_to(job.run.root).as_posix()}
    place["tokens"] = str(tokens.path.resolve())
    job.processes.post({"do": "train", "inputs": dict(inputs)} | place)
    model, trained = train_share(job, arm, folder, tokens, inputs, checkpoint)
    if job.processes.size > 1:  # each holds its rows; the last checkpoint holds all of them
        model = _start_model(job, arm, folder)
        load_weights(folder / "checkpoints", model)
    # One that is there without a result.json was left by a kill: it may be of other inputs.
    shutil.rmtree(folder / "model", ignore_errors=True)
    save_model(model, folder / "model", arm.start_in(folder))
    _publish_moments(job, arm, folder)
    return trained


def _publish_moments(job: Job, arm: Arm, folder: Path) -> None:
    """Turn the checkpoints that were kept on the way into model directories."""
    from inheritune.train.state import load_weights
    from inheritune.train.weights import save_model

    shutil.rmtree(folder / "at", ignore_errors=True)  # of a training with other inputs
    for kept in sorted((folder / "moments").glob("[0-9]*")):
        model = _start_model(job, arm, folder)
        load_weights(kept, model)
        tokens = int(kept.name) * job.recipe.train.batch_tokens
        save_model(model, folder / "at" / f"{tokens:016d}-tokens", arm.start_in(folder))


def train_share(
    job: Job,
    arm: Arm,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    checkpoint: Path | None = None,
) -> "tuple[PreTrainedModel, Trained]":
    """This process's part of a training; all of them call it with the same arguments.

    Process 0 alone may name a checkpoint to go on from: it is the one that chooses.
    """
    from inheritune.evaluate.val_loss import measure_val_loss
    from inheritune.train.forecast import Goal
    from inheritune.train.loop import Plan, train
    from inheritune.train.settings import choose_settings
    from inheritune.train.weights import describe

    recipe, processes = arm.settings(job.recipe.train), job.processes
    batch_size = job.recipe.evaluate.batch_size
    flops = describe(arm.start_in(folder), recipe.seq_len).flops_per_token * arm.tokens
    settings = choose_settings(recipe, flops, processes.size)
    moments = _end_of(job.run.root / str(arm.grown_from)) if arm.keeps_moments else None
    model = _start_model(job, arm, folder)

    def measure(model: Any) -> float:
        with enough_memory_to_validate(batch_size):
            return measure_val_loss(
                model, tokens.val, recipe.seq_len, batch_size, job.stop, processes=processes
            ).mean

    plan = Plan(
        task=arm.task,
        stream=tokens.train,
        tokens=arm.tokens,
        inputs=inputs,
        first_sample=arm.first_sample,
        moments=moments,
        allowed=job.allowed,
        warn=warned(job.recipe),
        checkpoint=checkpoint,
        goal=None if arm.goal is None else Goal(arm.goal, arm.audit),
        peak_flops=_peak_flops(settings.device),
        keep_at=_steps_to_keep(job, arm),
    )
    shown = open_trackers(job, arm.task, folder)
    rest = (measure, job.stop, job.on_progress, processes, shown.send)
    with shown, processes.watched(), _enough_memory(recipe.micro_batch):
        if arm.distill is not None:
            plan = replace(plan, distillation=open_distillation(job, arm, tokens, inputs, settings))
        trained = train(model, recipe, plan, settings, folder, *rest)
    return model, trained


def _peak_flops(device: str) -> float | None:
    import torch

    return peak_of(torch.cuda.get_device_name()) if device == "cuda" else None


def _steps_to_keep(job: Job, arm: Arm) -> frozenset[int]:
    """Steps after which the recipe asks tasks, the end apart: that is asked anyway."""
    # Of several seeds, the first one's models are asked.
    if arm.repeats or arm.variant not in job.recipe.variants:
        return frozenset()
    batch_tokens = job.recipe.train.batch_tokens
    return frozenset(tokens // batch_tokens for tokens in asked_at(job.recipe, arm.tokens))


def _let_go() -> None:
    """Free the trained model now: compiled layers refer to themselves."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _enough_memory(micro_batch: int) -> AbstractContextManager[None]:
    otherwise = "Set train.activation_checkpointing to on"
    return memory_named("train.micro_batch", micro_batch, otherwise)


def _start_model(job: Job, arm: Arm, folder: Path) -> "PreTrainedModel":
    from inheritune.train.weights import fresh_model, load_model

    recipe = arm.settings(job.recipe.train)
    if arm.start == "fresh":
        return fresh_model(arm.start_in(folder), recipe.seed, recipe.dropout)
    return load_model(arm.start_in(folder), recipe.dropout)


def _end_of(folder: Path) -> Path:
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    if not checkpoints:
        raise CheckpointError(
            f"the optimizer state at the end of {folder} is not there any more.",
            "It is kept where grow.weights is keep, or a variant starts grown, from the first "
            "round on: give the run another name.",
        )
    return checkpoints[-1]


def _measure(
    job: Job,
    arm: Arm,
    folder: Path,
    tokens: TokenDirectory,
    trained: "Trained",
    inputs: Mapping[str, Any],
    benchmark: list[float] | None,
) -> Trial:
    from inheritune.evaluate.val_loss import paired_difference
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
    forwards, forwards_s = 0.0, 0.0
    if arm.distill is not None:
        forwards, forwards_s = reference_cost(job, arm, tokens, inputs, position.tokens)
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
        seconds=trained.seconds + eval_s + forwards_s,
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
        abandoned=abandoned_record(arm, trained, _whole_steps(job, arm), loss.mean),
    )
    if trial.abandoned is not None:
        job.on_progress(Progress(arm.task, message=tell_abandoned(trial.abandoned)))
    if benchmark is None:
        # Travels with a reference, so that whoever inherits from it knows what its training cost.
        kept = ("tokens", "flops", "seconds", "val_loss", "val_loss_se")
        ledger = {key: value for key, value in asdict(trial).items() if key in kept}
        ledger["processes"] = trained.settings.processes
        write_json(folder / "model" / "training.json", ledger | {"curve": curve})
    return trial


def _whole_steps(job: Job, arm: Arm) -> int:
    from inheritune.train.loop import plan_steps

    return plan_steps(job.recipe.train, arm.tokens) * job.recipe.train.batch_tokens


def _curve(metrics: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [
        {"tokens": row["tokens"], "val_loss": row["val_loss"]} for row in rows if "val_loss" in row
    ]
