"""The one training loop, for one process and for many.

B sequences per forward, T tokens per sequence.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.tokens import TokenStream
from inheritune.errors import DivergedError, Interrupted
from inheritune.recipe.schema import Train
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.checkpoint import Position, load_moments, load_newest
from inheritune.training.checkpoint_files import drop_later, keep_checkpoint
from inheritune.training.distillation import Distillation
from inheritune.training.fsdp import my_share
from inheritune.training.hardware import Settings
from inheritune.training.metrics import Metrics, OnRow, continued_row, parts_row, step_row, val_row
from inheritune.training.optimizer import learning_rate, mean_and_clip, set_learning_rate
from inheritune.training.save_schedule import CheckpointSchedule
from inheritune.training.setup import make_setup
from inheritune.training.step import forward_backward
from inheritune.training.throughput import flops_per_token, forget_peak, mfu

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["LoopConfig", "LoopResult", "train"]

_EVALUATIONS = 10  # per training, unless the recipe says how often


@dataclass(frozen=True)
class LoopConfig:
    """What to train on, and for how long.

    Attributes:
        task: Name shown with the progress.
        stream: Training tokens.
        tokens: How many to train on, repeats counted; rounded down to whole steps.
        inputs: Whatever decides the result; a checkpoint of other inputs is refused.
        first_sample: Position in the order of samples at which this training begins.
        moments: Checkpoint of a smaller model's training whose moments are taken over.
        allowed: Keys of the inputs that may differ from a checkpoint's.
        warn: What may differ with a warning.
        checkpoint: The one to go on from; None: the newest that is whole.
        distillation: What to learn from besides the tokens.
        peak_flops: Of the device, for the rows' `mfu`; see `throughput.mfu`.
        keep_at: Steps whose checkpoint is kept under ``moments/`` as well, whatever `keep` says.
    """

    task: str
    stream: TokenStream
    tokens: int
    inputs: Mapping[str, Any]
    first_sample: int = 0
    moments: Path | None = None
    allowed: Collection[str] = ()
    warn: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    distillation: Distillation | None = None
    peak_flops: float | None = None
    keep_at: Collection[int] = ()


@dataclass(frozen=True)
class LoopResult:
    """What a training came to.

    Attributes:
        position: Its end.
        seconds: Of training, compiling and validating on the way, over all restarts.
        start_val_loss: Nats per token before the first step; None when it was not measured.
        restarts: How often it was continued from a checkpoint.
        settings: What was used in the end: a fallback shows here.
        notes: Sentences worth keeping: fallbacks, checkpoints passed over.
    """

    position: Position
    seconds: float
    start_val_loss: float | None
    restarts: int
    settings: Settings
    notes: tuple[str, ...]


def train(
    model: "PreTrainedModel",
    recipe: Train,
    plan: LoopConfig,
    settings: Settings,
    folder: Path,
    measure: "Callable[[nn.Module], float]",
    stop: StopFlag,
    on_progress: Listener = silent,
    processes: Processes = ALONE,
    on_row: OnRow | None = None,
) -> LoopResult:
    """Train a model in place, from its newest checkpoint, or the one named, if there is one.

    The same inputs give the same weights, however often it is stopped and continued; with another
    number of processes the same samples, and the same weights up to the order of sums.

    Args:
        model: fp32 weights; trained in place.
        recipe: Batch, optimizer, schedule.
        plan: Tokens, and how many.
        settings: Device, precision, kernels.
        folder: Receives `metrics.jsonl` and `checkpoints/`, from process 0.
        measure: The model's val_loss, nats per token; called by all processes at once, before the
            first step and on the way, not at the end.
        stop: Asked between micro-batches.
        on_progress: Told after every step.
        processes: That share the work; each calls this with the same arguments.
        on_row: Is given every row of `metrics.jsonl` when it is written, in process 0.

    Raises:
        Interrupted: Asked to stop; a checkpoint was saved.
        DivergedError: A loss or gradient was not finite and the recipe says stop.
        CheckpointError: Checkpoints exist, and none, or not the one named, can be continued from.
        RecipeError: The newest checkpoint belongs to other inputs.
        SourceError: The reference of a distillation has another vocabulary.
        MachineError: The disk is full, or another process ended.
    """
    share = my_share(recipe, processes)
    flops = flops_per_token(model, recipe.seq_len)  # counted while it is whole
    forget_peak()  # of the trainings before this one
    ready = make_setup(model, recipe, settings, plan.stream, processes, plan.distillation)
    kept = folder / "checkpoints"
    position, notes = load_newest(
        *(kept, model, ready.optimizer, plan.inputs, processes),
        allowed=plan.allowed,
        warn=plan.warn,
        settings=ready.settings.compared(),
        named=plan.checkpoint,
    )
    if plan.moments is not None and not position.step:
        load_moments(plan.moments, model, ready.optimizer, processes)
    steps = recipe.num_steps(plan.tokens)
    total = steps * recipe.batch_tokens
    per_step = recipe.batch_tokens // recipe.seq_len
    eval_every = max(1, (recipe.eval_every or total // _EVALUATIONS) // recipe.batch_tokens)

    metrics = Metrics.open(folder / "metrics.jsonl", position.step, processes, on_row)
    what = (kept, model, ready, recipe, plan.inputs, plan.warn, metrics, processes)
    saves, epoch = CheckpointSchedule(*what, position.step), _Epochs(plan, recipe)
    for note in notes + ready.notes:  # now: at the end it is too late to do anything about it
        on_progress(Progress(plan.task, position.tokens, total, "tokens", message=note))
    if position.step:
        metrics.append(continued_row(position, epoch(position)))
        resumed = f"continued from step {position.step} of {steps}"
        on_progress(Progress(plan.task, position.tokens, total, "tokens", message=resumed))
    began, before_s = time.monotonic(), position.elapsed_s

    def keep_moment() -> None:
        if position.step in plan.keep_at and not processes.rank:
            keep_checkpoint(folder / "checkpoints", folder / "moments", position.step)

    def evaluate() -> float | None:
        # The end, and what is nearly the end, is left to whoever measures the published model.
        ends = position.step and 2 * (steps - position.step) < eval_every
        if ends or position.step % eval_every or position.step in metrics.val_losses:
            return None
        try:
            val_loss = measure(ready.callable_model)
        except Interrupted:
            saves.save(position)
            raise
        model.train()
        metrics.append(val_row(position, epoch(position), val_loss))
        saves.validated(position)
        return val_loss

    if not processes.rank:
        drop_later(folder / "moments", position.step)  # of another branch: see --from
    keep_moment()  # of a training that was killed between the two
    # -- one turn per optimizer step; a stop may fall between saving and evaluating, hence the call
    evaluate()
    while position.step < steps:
        step_began = time.monotonic()
        first = plan.first_sample + position.step * per_step
        due = saves.due()
        sums = forward_backward(
            ready, recipe, plan.stream, position.step, first, share, stop, due, processes
        )
        if sums.stop:  # the broken step is done again, whole, when the training goes on
            saves.save(position)
            stop.heed(True)
            place = f"saved at step {position.step} of" if position.step else "before the first of"
            stop.check(f"{place} {steps} steps of {plan.task}")
        mean_loss = sums.loss / sums.targets
        norm = mean_and_clip(ready.params, sums.targets, recipe.clip_norm)
        finite = math.isfinite(mean_loss) and math.isfinite(norm)
        rate = learning_rate(recipe, (position.step + 1) * recipe.batch_tokens, total)
        if finite:
            set_learning_rate(ready.optimizer, rate)
            ready.optimizer.step()
        ready.optimizer.zero_grad(set_to_none=True)
        step_s = time.monotonic() - step_began
        position = replace(
            position,
            step=position.step + 1,
            tokens=position.tokens + recipe.batch_tokens,
            elapsed_s=before_s + time.monotonic() - began,
            skipped=position.skipped + (not finite),
            skips_in_a_row=0 if finite else position.skips_in_a_row + 1,
        )
        speed = recipe.batch_tokens / step_s
        used = mfu(speed, flops, plan.peak_flops, processes.size)
        row = step_row(position, epoch(position), mean_loss, norm, rate, speed, used) | parts_row(
            [part / sums.targets for part in sums.parts]
        )
        if not finite:
            row |= {"samples": [first, first + per_step], "ranks": sums.broken}
        metrics.append(row)
        if not finite and (
            recipe.nonfinite == "stop" or position.skips_in_a_row > recipe.max_skips
        ):
            raise _diverged(plan.task, recipe, mean_loss, norm, position.step)
        # Save before evaluating: a crash in the evaluation loses nothing.
        if position.step == steps or sums.save or position.step in plan.keep_at:
            saves.save(position)
            keep_moment()
        val_loss = evaluate()
        on_progress(_progress(plan.task, row, total, val_loss))
    seconds = before_s + time.monotonic() - began
    said, start = tuple(notes + ready.notes), metrics.val_losses.get(0)
    return LoopResult(position, seconds, start, metrics.restarts, ready.settings, said)


def _diverged(task: str, recipe: Train, loss: float, norm: float, step: int) -> DivergedError:
    more = "raise train.max_skips" if recipe.nonfinite == "skip" else "set train.nonfinite to skip"
    return DivergedError(
        f"{task}: loss {loss}, gradient norm {norm} at step {step}.",
        f"Lower train.learning_rate under another name, or {more}.",
    )


class _Epochs:
    """Passes over the training tokens, by a position."""

    def __init__(self, plan: LoopConfig, recipe: Train) -> None:
        self._unique = plan.stream.num_samples(recipe.seq_len) * recipe.seq_len
        self._before = plan.first_sample * recipe.seq_len

    def __call__(self, position: Position) -> float:
        return (self._before + position.tokens) / self._unique


def _progress(task: str, row: Mapping[str, Any], total: int, val_loss: float | None) -> Progress:
    facts = {"tokens/s": f"{row['tokens_per_s']:,.0f}"}
    if row["loss"] is not None:
        facts = {"loss": f"{row['loss']:.4f}"} | facts
    message = "" if val_loss is None else f"step {row['step']}: val_loss {val_loss:.4f}"
    return Progress(task, row["tokens"], total, "tokens", facts, message)
