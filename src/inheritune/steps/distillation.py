"""Open the reference of a distillation: run beside the training, or its logits stored on disk."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.order import ORDER_VERSION
from inheritune.model_files.config import text_config
from inheritune.model_files.flops import EVALUATION_SHARE, hidden_loss_flops
from inheritune.recipe.training import Train
from inheritune.recipe.variants import Distill
from inheritune.steps.training_task import TrainingTask
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Progress
from inheritune.system.strict_json import MODEL_FILE, read_json_object

if TYPE_CHECKING:
    from inheritune.training.distillation import Distillation, FrozenReference
    from inheritune.training.hardware import Settings
    from inheritune.training.logit_cache import LogitCache


def open_distillation(task: TrainingTask, settings: "Settings") -> "Distillation":
    """Open what a training learns from besides its tokens; missing logits are stored first.

    All processes call this at once, and take the shards that are to be stored in turn.

    Args:
        task: Its spec has a section `distill`.
        settings: Device and precision of the training.

    Raises:
        Interrupted: A signal asked to stop; complete shards stay.
    """
    import torch

    from inheritune.training.distillation import Distillation, FrozenReference
    from inheritune.training.models import load_model

    section = Distill.model_validate(task.spec.distill)

    def reference(processes: Processes) -> "FrozenReference":
        # In the precision of the computation: in fp32 it would often need more than the target.
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        load = partial(load_model, _reference_dir(task), dtype=dtype)
        return FrozenReference(load, settings, section.temperature, processes)

    if section.top_k is None:
        return Distillation(
            reference(task.job.processes), section.alpha, section.hidden, task.spec.layer_map
        )

    @cache  # loaded once, and only where it has something to do
    def lone_reference() -> "FrozenReference":
        return reference(ALONE)  # whole, since each process predicts other samples

    # --- store what the training needs and the disk does not have yet ---
    train, processes = settings.resolved(task.train), task.job.processes
    logits = _open_cache(task, train, section, section.top_k)
    samples_per_step = train.batch_tokens // train.seq_len
    samples = task.spec.first_sample + train.num_steps(task.spec.tokens) * samples_per_step
    shards = processes.on_main(lambda: logits.missing(samples))
    for turn in range(0, len(shards), processes.size):
        own_shard = shards[turn + processes.rank :][:1]  # none where the last turn is not full
        processes.on_all(partial(_store, task, logits, own_shard, lone_reference))
    return Distillation(logits, section.alpha)


def distill_inputs(section: dict[str, Any]) -> dict[str, Any]:
    """What decides the loss: the section, and how a temperature is applied to stored logits.

    Earlier versions applied it to all ids, so a training of theirs is not continued.
    """
    is_tempered = section["top_k"] is not None and section["temperature"] != 1
    inputs = {k: v for k, v in section.items() if (k, v) != ("hidden", None)}  # as in older runs
    return inputs | ({"tempered": "the k ids"} if is_tempered else {})


def reference_cost(task: TrainingTask, tokens: int) -> tuple[float, float]:
    """FLOPs of the reference's forward passes, and their seconds outside of the training.

    A comparison of hidden states is among the FLOPs. Logits that an earlier training has stored
    cost this one nothing.

    Args:
        task: Its spec has a section `distill`.
        tokens: Tokens that were trained on.
    """
    from inheritune.training.models import describe

    section, seconds = Distill.model_validate(task.spec.distill), 0.0
    if section.top_k is not None:
        tokens, seconds = _open_cache(task, task.train, section, section.top_k).cost(task.title)
    shape = describe(_reference_dir(task), task.train.seq_len)
    flops = shape.flops_per_token * EVALUATION_SHARE
    if section.hidden is not None:
        config = read_json_object(task.start_dir / "config.json", MODEL_FILE)
        flops += hidden_loss_flops(text_config(config), task.spec.layers)
    return flops * tokens, seconds


def _open_cache(task: TrainingTask, train: Train, section: Distill, top_k: int) -> "LogitCache":
    from inheritune.training.logit_cache import LogitCache
    from inheritune.training.models import vocab_size

    return LogitCache(
        task.job.run.logits,
        {
            "reference": task.spec.reference_digest,
            "tokens": task.tokens.fingerprint,
            "order": ORDER_VERSION,
        },
        task.tokens.train,
        train,  # its seed decides the order in which samples are stored
        top_k,
        section.temperature,
        vocab_size(_reference_dir(task)),
    )


def _store(
    task: TrainingTask,
    logits: "LogitCache",
    shards: list[tuple[int, int]],
    reference: "Callable[[], FrozenReference]",
) -> None:
    for first, stop in shards:

        def on_batch(samples: int, first: int = first, stop: int = stop) -> None:
            task.job.stop.check(f"the reference's logits of {first} samples are stored")
            title = f"{task.title}, reference"
            task.job.on_progress(Progress(title, first + samples, stop, "samples"))

        logits.write((first, stop), reference(), task.title, on_batch)


def _reference_dir(task: TrainingTask) -> Path:
    assert task.spec.reference_dir is not None  # set wherever the spec has a section `distill`
    return Path(task.spec.reference_dir)
