"""Run one training from its start directory to a published, measured model directory."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.tokens import check_budget
from inheritune.errors import CheckpointError
from inheritune.model_files.training_memory import TrainedModel
from inheritune.recipe.sharding import micro_batches
from inheritune.recipe.training import Train
from inheritune.steps.distillation import open_distillation
from inheritune.steps.limits import memory_named, refuse_large_training
from inheritune.steps.result import TrainingResult, make_result, measure_published
from inheritune.steps.resume import checkpoint_for, noted_inputs, save_result, saved_result
from inheritune.steps.training_task import TrainingTask
from inheritune.steps.validation import enough_memory_to_validate
from inheritune.system.devices import peak_of
from inheritune.system.files import scratch_directory, write_errors
from inheritune.system.progress import Progress
from inheritune.system.strict_json import MODEL_FILE, as_dataclass, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.training.loop_config import LoopResult
    from inheritune.training.metrics import OnRow
    from inheritune.training.models import Shape
    from inheritune.training.trackers import Trackers


def run_training(
    task: TrainingTask, reference_windows: list[float] | None = None
) -> TrainingResult:
    """Train the start, publish the result as ``model/``, and measure what was published.

    Args:
        task: Its directory holds ``start/``, unless the spec names a model.
        reference_windows: The reference's loss per validation window, nats per token; None for the
            training of the reference itself.

    Returns:
        The contents of `result.json`, where the training was completed before.
    """
    stored = saved_result(task.job, task.result_file, task.result_inputs)
    if stored is None:
        recipe, spec = task.job.recipe, task.spec
        check_budget(
            task.tokens,
            spec.first_sample * recipe.train.seq_len + max(spec.tokens, recipe.train.batch_tokens),
            recipe.train.seq_len,
            recipe.data.allow_repeat,
            recipe.train.batch_tokens,
        )
        with open_trackers(task) as trackers:
            loop_result = _train(task, trackers.send)
            free_memory()
            measurement = measure_published(task, trackers.send)
        result = make_result(task, loop_result, measurement, reference_windows)
        save_result(task.result_file, task.result_inputs, asdict(result))
    else:
        stored.pop("abandoned", None)  # null in results of versions that could end rounds early
        result = as_dataclass(TrainingResult, stored, task.result_file)
    _remove_checkpoints(task)
    # Results of versions before there were several seeds do not name theirs.
    return replace(result, seed=task.train.seed)


def _remove_checkpoints(task: TrainingTask) -> None:
    """Remove what the result could be made from again; its end stays where another one goes on."""
    from inheritune.training.checkpoint_files import newest_first, set_aside_in

    checkpoints = newest_first(task.checkpoints_dir)[1 if task.spec.keeps_end else 0 :]
    for checkpoint in [*checkpoints, *set_aside_in(task.checkpoints_dir)]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(task.snapshots_dir, ignore_errors=True)
    if not (task.spec.keeps_end or task.spec.is_stacked):
        shutil.rmtree(task.master_dir, ignore_errors=True)
    if not task.spec.keeps_end:
        (task.checkpoints_dir / "latest").unlink(missing_ok=True)


def open_trackers(task: TrainingTask) -> "Trackers":
    """Open the trackers that the recipe names; in all processes but the first, none."""
    from inheritune.training.tracker_adapters import ADAPTERS
    from inheritune.training.trackers import Trackers

    job = task.job

    def report(problem: str) -> None:
        job.on_progress(Progress(task.title, message=problem))

    names: Sequence[str] = [] if job.processes.rank else job.recipe.report.trackers
    makers = {name: ADAPTERS[name] for name in names}
    return Trackers(makers, f"{job.recipe.name}: {task.title}", task.directory, report)


def _train(task: TrainingTask, on_row: "OnRow") -> "LoopResult":
    """Train in all processes, and publish ``model/`` and the models of snapshots."""
    from inheritune.training.checkpoint import load_weights
    from inheritune.training.checkpoint_files import snapshots_in
    from inheritune.training.models import describe, save_model

    # --- refuse what cannot be done before the other processes begin ---
    checkpoint = checkpoint_for(task.job, task.directory)
    shape = describe(task.start_dir, task.train.seq_len, task.train.only)
    snapshots = len(task.snapshot_steps())
    refuse_large_training(
        task.directory, shape.params, shape.trained, task.dtype, task.train.keep, snapshots
    )

    # --- train ---
    task.job.processes.post({"do": "train"} | task.message())
    model, loop_result = train_share(task, checkpoint, on_row)
    if model is None:  # the last checkpoint holds all rows
        model = task.start_model()
        load_weights(task.checkpoints_dir, model)

    # --- publish; models without a result.json were left by a kill, maybe of other inputs ---
    for directory in (task.master_dir, task.model_dir, task.snapshot_models_dir):
        shutil.rmtree(directory, ignore_errors=True)
    if task.dtype != "F32":  # to measure what rounding costs, and for later rounds to grow from
        save_model(model, task.master_dir, task.start_dir)
    save_model(model, task.model_dir, task.start_dir, task.dtype)
    for step, snapshot in snapshots_in(task.snapshots_dir).items():
        model = task.start_model()
        load_weights(snapshot, model)
        tokens = step * task.train.batch_tokens
        out = task.snapshot_models_dir / f"{tokens:016d}-tokens"
        save_model(model, out, task.start_dir, task.dtype)
    return loop_result


def train_share(
    task: TrainingTask, checkpoint: Path | None = None, on_row: "OnRow | None" = None
) -> "tuple[PreTrainedModel | None, LoopResult]":
    """Do this process's share of a training; all processes call it with the same task.

    The model is None where there are several processes: each holds its rows.

    Args:
        checkpoint: Checkpoint to continue from; None: the newest. Only process 0 may name one.
        on_row: Called with every row of ``metrics.jsonl``; only process 0 writes them.
    """
    from inheritune.evaluation.val_loss import measure_val_loss
    from inheritune.training.checkpoint_files import micro_batch_before
    from inheritune.training.hardware import choose_device, choose_settings, device_memory
    from inheritune.training.loop import train
    from inheritune.training.loop_config import LoopConfig
    from inheritune.training.models import describe

    # --- device, precision and kernels; then the start ---
    job, spec, section = task.job, task.spec, task.train
    shape = describe(task.start_dir, section.seq_len, section.only)
    flops = shape.flops_per_token * spec.tokens
    memories = job.processes.on_all(lambda: device_memory(choose_device()))
    settings = choose_settings(
        section,
        flops,
        job.processes.size,
        machines=job.processes.nodes,
        model=_trained_model(task, shape),
        memory=min(filter(None, memories), default=None),
        before=job.processes.on_main(lambda: micro_batch_before(task.checkpoints_dir, checkpoint)),
    )
    section = settings.resolved(section)
    smaller_end = None
    if spec.keeps_optimizer_state:
        smaller_end = _end_of(job.run.root / str(spec.grown_from))
    # One that is too large for a device is loaded inside, by one process of a machine at a time.
    model = None if settings.begins_on_host else task.start_model()

    def measure(model: Any) -> float:
        batch_size = job.recipe.evaluate.batch_size
        with enough_memory_to_validate(batch_size):
            return measure_val_loss(
                model,
                task.tokens.val,
                section.seq_len,
                batch_size,
                job.stop,
                processes=job.processes,
            ).mean

    # --- train; a distillation's reference is loaded, or what is stored of it, inside ---
    with job.processes.watched(), _enough_memory(section, job.processes.size):
        distillation = None if spec.distill is None else open_distillation(task, settings)
        config = LoopConfig(
            task=task.title,
            train=section,
            settings=settings,
            stream=task.tokens.train,
            tokens=spec.tokens,
            folder=task.directory,
            inputs=task.inputs,
            noted_inputs=noted_inputs(job.recipe),
            allowed_changes=job.allowed,
            first_sample=spec.first_sample,
            moments_from=smaller_end,
            moments_at=spec.grown_places or (),
            resume_from=checkpoint,
            distillation=distillation,
            snapshot_steps=task.snapshot_steps(),
            peak_flops=_peak_flops(settings.device),
        )
        loop_result = train(
            task.start_model if model is None else model,
            config,
            measure,
            job.stop,
            on_progress=job.on_progress,
            on_row=on_row,
            processes=job.processes,
        )
    return model if job.processes.size == 1 else None, loop_result


@contextmanager
def compiler_files(run: Path) -> Iterator[None]:
    """Have torch's compiler keep its files in a new directory of the run, removed at the end.

    torch unpickles and executes what it finds there, so nothing from before may be there. Where
    the user has said where, or in a block within another, nothing is changed.
    """
    # torch's own place, which other users of this machine may have filled, is never used: whether
    # torch or the user has put it into the environment cannot be told.
    default = _default_of_torch()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        if default and Path(os.environ.get(name, "")).is_relative_to(default):
            del os.environ[name]
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        yield
        return
    with ExitStack() as stack:
        with write_errors(run):
            directory = stack.enter_context(scratch_directory(run.absolute() / "compiled"))
        # torch would set the second itself, to a place in the first, and leave it set.
        places = {"TORCHINDUCTOR_CACHE_DIR": directory, "TRITON_CACHE_DIR": directory / "triton"}
        for name in places.keys() - os.environ.keys():
            os.environ[name] = str(places[name])
            stack.callback(os.environ.pop, name, None)
        yield


def _default_of_torch() -> str:
    """Where torch puts compiled files, as it says in the environment once it is imported."""
    loaded = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    return str(loaded.default_cache_dir()) if loaded else ""


def _trained_model(task: TrainingTask, shape: "Shape") -> TrainedModel:
    """Describe what decides the memory of a training; a reference only where it runs beside."""
    from inheritune.training.models import describe

    distill, directory = task.spec.distill, task.spec.reference_dir
    beside = None
    if distill is not None and distill["top_k"] is None and directory is not None:
        beside = describe(Path(directory), task.train.seq_len)
    return TrainedModel(
        config=read_json_object(task.start_dir / "config.json", MODEL_FILE),
        params=shape.params,
        in_layers=shape.in_layers,
        layers=shape.layers,
        tied=shape.ties_head,
        trained=shape.trained,
        lowest_trained_layer=shape.lowest_trained_layer,
        reference=0 if beside is None else beside.params,
        reference_layers=0 if beside is None else beside.layers,
        compares_hidden=distill is not None and distill.get("hidden") is not None,
    )


def _peak_flops(device: str) -> float | None:
    import torch

    return peak_of(torch.cuda.get_device_name()) if device == "cuda" else None


def free_memory() -> None:
    """Free a model that was trained, now: compiled layers refer to themselves."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _enough_memory(train: Train, processes: int) -> AbstractContextManager[None]:
    """Name the next smaller micro-batch where a training runs out of memory."""
    value = train.resolved_micro_batch
    fitting = micro_batches(train, processes, value // 2) if value > 1 else []
    otherwise = "Set train.activation_checkpointing to on"
    return memory_named("train.micro_batch", value, next(iter(fitting), 0), otherwise)


def _end_of(training_dir: Path) -> Path:
    """The last checkpoint of a finished training."""
    from inheritune.training.checkpoint_files import newest_first

    checkpoints = newest_first(training_dir / "checkpoints")
    if not checkpoints:
        raise CheckpointError(
            f"the optimizer state at the end of {training_dir} is missing.",
            "It is kept where grow.weights is keep, or a variant starts grown, from the first "
            "round on: give the run another name.",
        )
    return checkpoints[0]
