"""What a distillation learns from: the reference beside it, or what it has said, kept on disk."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.order import ORDER_VERSION
from inheritune.data.tokens import TokenDirectory
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.variants import Distill
from inheritune.steps.job import Job
from inheritune.steps.training_spec import TrainingSpec
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from inheritune.training.distillation import Distillation, FrozenReference
    from inheritune.training.hardware import Settings
    from inheritune.training.logit_cache import LogitCache

__all__ = ["open_distillation", "reference_cost"]


def open_distillation(
    job: Job,
    arm: TrainingSpec,
    tokens: TokenDirectory,
    inputs: Mapping[str, Any],
    settings: "Settings",
) -> "Distillation":
    """What an arm learns from besides its tokens; what is to be on disk is there afterwards.

    Args:
        job: Its processes take shards in turn; all of them call this at once.
        arm: Has a `distill`.
        tokens: To train on.
        inputs: Of the arm's training: they name the reference.
        settings: Of the arm's training.

    Raises:
        Interrupted: Asked to stop; the shards that are whole stay.
    """
    from inheritune.training.distillation import Distillation, FrozenReference
    from inheritune.training.models import load_model

    wanted = Distill.model_validate(arm.distill)

    @cache
    def reference() -> "FrozenReference":
        return FrozenReference(load_model(_reference_of(arm)), settings, wanted.temperature)

    if wanted.top_k is None:
        return Distillation(reference(), wanted.alpha)
    stored = _open_cache(job, arm, tokens, inputs, wanted)
    per_step = job.recipe.train.batch_tokens // job.recipe.train.seq_len
    steps = job.recipe.train.num_steps(arm.tokens)
    missing = job.processes.on_main(lambda: stored.missing(arm.first_sample + steps * per_step))
    for turn in range(0, len(missing), job.processes.size):
        mine = missing[turn + job.processes.rank :][:1]
        job.processes.on_all(partial(_write, job, arm, stored, mine, reference))
    return Distillation(stored, wanted.alpha)


def reference_cost(
    job: Job, arm: TrainingSpec, tokens: TokenDirectory, inputs: Mapping[str, Any], trained: int
) -> tuple[float, float]:
    """What a distillation's reference cost: FLOPs, and the seconds that were not the training's.

    Args:
        job: Knows the recipe.
        arm: Has a `distill`. What an earlier training has had stored costs this one nothing.
        tokens: That were trained on.
        inputs: Of the arm's training.
        trained: Tokens of the training.
    """
    from inheritune.training.models import describe

    wanted, seconds = Distill.model_validate(arm.distill), 0.0
    if wanted.top_k is not None:
        trained, seconds = _open_cache(job, arm, tokens, inputs, wanted).cost(arm.task)
    shape = describe(_reference_of(arm), job.recipe.train.seq_len)
    return shape.flops_per_token * EVALUATION_SHARE * trained, seconds


def _open_cache(
    job: Job, arm: TrainingSpec, tokens: TokenDirectory, inputs: Mapping[str, Any], wanted: Distill
) -> "LogitCache":
    from inheritune.training.logit_cache import LogitCache
    from inheritune.training.models import vocab_size

    assert wanted.top_k is not None
    rows = vocab_size(_reference_of(arm))
    made_from = {"reference": inputs["reference"], "tokens": tokens.fingerprint}
    made_from["order"] = ORDER_VERSION
    sizes = (wanted.top_k, wanted.temperature, rows)
    order = arm.settings(job.recipe.train)  # its seed decides the order in which they are kept
    return LogitCache(job.run.logits, made_from, tokens.train, order, *sizes)


def _write(
    job: Job,
    arm: TrainingSpec,
    stored: "LogitCache",
    places: list[tuple[int, int]],
    reference: "Callable[[], FrozenReference]",
) -> None:
    for first, stop in places:

        def on_batch(done: int, first: int = first, stop: int = stop) -> None:
            job.stop.check(f"of what the reference predicts, {first} samples are kept")
            job.on_progress(Progress(f"{arm.task}, reference", first + done, stop, "samples"))

        stored.write((first, stop), reference(), arm.task, on_batch)


def _reference_of(arm: TrainingSpec) -> Path:
    assert arm.reference is not None  # whoever has a distill has one
    return Path(arm.reference)
