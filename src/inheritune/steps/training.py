"""One training from a start directory to a measured model directory.

The trackers that a recipe names, for one training.
"""

import gc
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.tokens import TokenDirectory, check_budget
from inheritune.errors import CheckpointError
from inheritune.steps.distillation import open_distillation
from inheritune.steps.job import Job, finish, finished
from inheritune.steps.limits import memory_named, refuse_full_disk
from inheritune.steps.result import TrainingResult, make_result, measure_published
from inheritune.steps.resume import checkpoint_for, decisive, warned
from inheritune.steps.tasks import asked_at
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.validation import enough_memory_to_validate
from inheritune.system.devices import peak_of
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.training.loop import LoopResult
    from inheritune.training.metrics import OnRow
    from inheritune.training.trackers import Trackers

__all__ = ["open_trackers", "run_training", "train_share", "training_inputs"]


def open_trackers(job: Job, task: str, folder: Path) -> "Trackers":
    """What a training's rows are sent to; in every process but the first, nothing.

    Args:
        job: Its recipe names the trackers; its listener is told what goes wrong with them.
        task: The training's name, shown with the recipe's.
        folder: The training's own directory.
    """
    from inheritune.training.tracker_adapters import ADAPTERS
    from inheritune.training.trackers import Trackers

    def say(trouble: str) -> None:
        job.on_progress(Progress(task, message=trouble))

    names: Sequence[str] = [] if job.processes.rank else job.recipe.report.trackers
    makers = {name: ADAPTERS[name] for name in names}
    return Trackers(makers, f"{job.recipe.name}: {task}", folder, say)


def training_inputs(
    job: Job, tokens: TokenDirectory, arm: TrainingSpec | None = None
) -> dict[str, Any]:
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
    arm: TrainingSpec,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    benchmark: list[float] | None = None,
) -> TrainingResult:
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
        with open_trackers(job, arm.task, folder) as shown:
            trained = _train(job, arm, folder, tokens, inputs, shown.send)
            _let_go()
            measured = measure_published(job, arm, folder, tokens, shown.send)
        known = (job, arm, folder, tokens, inputs)
        done = asdict(make_result(*known, trained, measured, benchmark))
        finish(path, inputs, done)
    # The result stands; only now is what it could be made from again let go. The end itself stays
    # where a larger model may go on from it.
    saved = sorted((folder / "checkpoints").glob("*step-*"))
    for old in saved[:-1] if arm.goes_on else saved:
        shutil.rmtree(old)
    shutil.rmtree(folder / "moments", ignore_errors=True)
    if not arm.goes_on:
        (folder / "checkpoints" / "latest").unlink(missing_ok=True)
    # Older results do not name their seed, and have a field for rounds that ended early.
    done.pop("abandoned", None)
    return TrainingResult(**(done | {"seed": arm.settings(job.recipe.train).seed}))


def _train(
    job: Job,
    arm: TrainingSpec,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    on_row: "OnRow",
) -> "LoopResult":
    from inheritune.training.checkpoint import load_weights
    from inheritune.training.models import describe, save_model

    checkpoint = checkpoint_for(job, folder)  # refused here, before the others begin
    train = arm.settings(job.recipe.train)
    params = describe(arm.start_in(folder), train.seq_len).params
    refuse_full_disk(folder, params, train.keep, len(_steps_to_keep(job, arm)))
    place = {"arm": asdict(arm), "folder": folder.relative_to(job.run.root).as_posix()}
    place["tokens"] = str(tokens.path.resolve())
    job.processes.post({"do": "train", "inputs": dict(inputs)} | place)
    model, trained = train_share(job, arm, folder, tokens, inputs, checkpoint, on_row)
    if job.processes.size > 1:  # each holds its rows; the last checkpoint holds all of them
        model = _start_model(job, arm, folder)
        load_weights(folder / "checkpoints", model)
    # One that is there without a result.json was left by a kill: it may be of other inputs.
    shutil.rmtree(folder / "model", ignore_errors=True)
    save_model(model, folder / "model", arm.start_in(folder))
    _publish_moments(job, arm, folder)
    return trained


def _publish_moments(job: Job, arm: TrainingSpec, folder: Path) -> None:
    """Turn the checkpoints that were kept on the way into model directories."""
    from inheritune.training.checkpoint import load_weights
    from inheritune.training.models import save_model

    shutil.rmtree(folder / "at", ignore_errors=True)  # of a training with other inputs
    for kept in sorted((folder / "moments").glob("[0-9]*")):
        model = _start_model(job, arm, folder)
        load_weights(kept, model)
        tokens = int(kept.name) * job.recipe.train.batch_tokens
        save_model(model, folder / "at" / f"{tokens:016d}-tokens", arm.start_in(folder))


def train_share(
    job: Job,
    arm: TrainingSpec,
    folder: Path,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    checkpoint: Path | None = None,
    on_row: "OnRow | None" = None,
) -> "tuple[PreTrainedModel, LoopResult]":
    """This process's part of a training; all of them call it with the same arguments.

    Process 0 alone may name a checkpoint to go on from, since it is the one that chooses, and who
    is given the rows, since it is the one that writes them.
    """
    from inheritune.evaluation.val_loss import measure_val_loss
    from inheritune.training.hardware import choose_settings
    from inheritune.training.loop import LoopConfig, train
    from inheritune.training.models import describe

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

    config = LoopConfig(
        task=arm.task,
        train=recipe,
        settings=settings,
        stream=tokens.train,
        tokens=arm.tokens,
        folder=folder,
        inputs=inputs,
        noted_inputs=warned(job.recipe),
        allowed_changes=job.allowed,
        first_sample=arm.first_sample,
        moments_from=moments,
        resume_from=checkpoint,
        snapshot_steps=_steps_to_keep(job, arm),
        peak_flops=_peak_flops(settings.device),
    )
    with processes.watched(), _enough_memory(recipe.micro_batch):
        if arm.distill is not None:
            distillation = open_distillation(job, arm, tokens, inputs, settings)
            config = replace(config, distillation=distillation)
        trained = train(
            model,
            config,
            measure,
            job.stop,
            on_progress=job.on_progress,
            on_row=on_row,
            processes=processes,
        )
    return model, trained


def _peak_flops(device: str) -> float | None:
    import torch

    return peak_of(torch.cuda.get_device_name()) if device == "cuda" else None


def _steps_to_keep(job: Job, arm: TrainingSpec) -> frozenset[int]:
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


def _start_model(job: Job, arm: TrainingSpec, folder: Path) -> "PreTrainedModel":
    from inheritune.training.models import fresh_model, load_model

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
