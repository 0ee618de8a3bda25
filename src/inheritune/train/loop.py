"""The one training loop.

B sequences per forward, T tokens per sequence.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inheritune.data.order import sample_ids
from inheritune.data.tokens import TokenStream
from inheritune.errors import DivergedError, Interrupted
from inheritune.progress import Listener, Progress, silent
from inheritune.recipe import Train
from inheritune.signals import StopFlag
from inheritune.train.attention import (
    MATMUL_ATTENTION,
    agrees_with_the_model,
    register_matmul_attention,
)
from inheritune.train.gelu import use_fused_gelu
from inheritune.train.loss import loss_sum
from inheritune.train.metrics import Metrics, continued_row, step_row, val_row
from inheritune.train.optimizer import (
    learning_rate,
    make_optimizer,
    mean_and_clip,
    set_learning_rate,
)
from inheritune.train.settings import Settings, keep_large_blocks
from inheritune.train.state import Position, load_newest, save_checkpoint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Plan", "Trained", "plan_steps", "train"]

_EVALUATIONS = 10  # per training, unless the recipe says how often


@dataclass(frozen=True)
class Plan:
    """What to train on, and for how long.

    Attributes:
        task: Name shown with the progress.
        stream: Training tokens.
        tokens: How many to train on, repeats counted; rounded down to whole steps.
        inputs: Whatever decides the result; a checkpoint of other inputs is refused.
    """

    task: str
    stream: TokenStream
    tokens: int
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        position: Its end.
        seconds: Of training, compiling and validating, over all restarts.
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


def plan_steps(train: Train, tokens: int) -> int:
    """Number of optimizer steps of a training; at least one."""
    return max(1, tokens // train.batch_tokens)


def train(
    model: "PreTrainedModel",
    recipe: Train,
    plan: Plan,
    settings: Settings,
    folder: Path,
    measure: Callable[["PreTrainedModel"], float],
    stop: StopFlag,
    on_progress: Listener = silent,
) -> Trained:
    """Train a model in place, from its newest checkpoint if there is one.

    The same inputs give the same weights, however often the training is stopped and continued.

    Args:
        model: fp32 weights; trained in place.
        recipe: Batch, optimizer, schedule.
        plan: Tokens, and how many.
        settings: Device, precision, kernels.
        folder: Receives `metrics.jsonl` and `checkpoints/`.
        measure: The model's val_loss, nats per token.
        stop: Asked between micro-batches.
        on_progress: Told after every step.

    Raises:
        Interrupted: Asked to stop; a checkpoint was saved.
        DivergedError: A loss or gradient was not finite and the recipe says stop.
        CheckpointError: Checkpoints exist, and none can be continued from.
    """
    notes: list[str] = []
    if settings.keep_large_blocks:
        keep_large_blocks()
    model.to(settings.device).train()  # type: ignore[arg-type]
    if settings.fused_gelu:
        use_fused_gelu(model)
    attention = _use_attention(model, recipe, settings, notes)
    optimizer = make_optimizer(model, recipe, fused=settings.fused_optimizer)
    optimizer.zero_grad(set_to_none=True)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    position, passed_over = load_newest(folder / "checkpoints", model, optimizer, plan.inputs)
    notes += passed_over
    steps = plan_steps(recipe, plan.tokens)
    total = steps * recipe.batch_tokens
    eval_every = max(1, (recipe.eval_every or total // _EVALUATIONS) // recipe.batch_tokens)

    unique_tokens = plan.stream.num_samples(recipe.seq_len) * recipe.seq_len
    metrics = Metrics(folder / "metrics.jsonl", keep_to_step=position.step)
    if position.step:
        metrics.append(continued_row(position, position.tokens / unique_tokens))
        resumed = f"continued from step {position.step} of {steps}"
        on_progress(Progress(plan.task, position.tokens, total, "tokens", message=resumed))
    began = last_saved = time.monotonic()
    before_s, skips_in_a_row = position.elapsed_s, 0
    compute_loss, compiled = _loss_function(model, settings, recipe, plan.stream, notes)

    def save() -> None:
        save_checkpoint(
            folder / "checkpoints", model, optimizer, position, plan.inputs, recipe.keep
        )

    def evaluate() -> float | None:
        due = position.step % eval_every == 0 or position.step == steps
        if not due or position.step in metrics.val_losses:
            return None
        try:
            val_loss = measure(model)
        except Interrupted:
            if position.step:
                save()
            raise
        model.train()
        metrics.append(val_row(position, position.tokens / unique_tokens, val_loss))
        return val_loss

    # -- one turn per optimizer step; a stop may fall between saving and evaluating, hence the call
    evaluate()
    while position.step < steps:
        step_began = time.monotonic()
        loss_total = torch.zeros((), dtype=torch.float64)
        for number, samples in enumerate(_micro_batches(plan.stream, recipe, position.step)):
            if recipe.dropout:  # drawn from the place in the training, so that a resume repeats it
                torch.manual_seed((recipe.seed << 48 | position.step << 16 | number) % 2**63)
            with settings.autocast():
                loss = compute_loss(samples.to(settings.device))
            loss.backward()
            loss_total += loss.detach().double().cpu()
            if stop():
                break
        if stop():  # the broken step is done again, whole, when the training goes on
            if position.step:
                save()
            stop.check(f"saved at step {position.step} of {steps} of {plan.task}")
        mean_loss = float(loss_total) / recipe.batch_tokens
        norm = mean_and_clip(params, recipe.batch_tokens, recipe.clip_norm)
        finite = math.isfinite(mean_loss) and math.isfinite(norm)
        rate = learning_rate(recipe, (position.step + 1) * recipe.batch_tokens, total)
        if finite:
            set_learning_rate(optimizer, rate)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step_s = time.monotonic() - step_began
        skips_in_a_row = 0 if finite else skips_in_a_row + 1
        position = replace(
            position,
            step=position.step + 1,
            tokens=position.tokens + recipe.batch_tokens,
            elapsed_s=before_s + time.monotonic() - began,
            skipped=position.skipped + (not finite),
        )
        epoch, tokens_per_s = position.tokens / unique_tokens, recipe.batch_tokens / step_s
        row = step_row(position, epoch, mean_loss, norm, rate, tokens_per_s)
        metrics.append(row)
        if not finite and (recipe.nonfinite == "stop" or skips_in_a_row > recipe.max_skips):
            raise DivergedError(
                f"{plan.task}: loss {mean_loss}, gradient norm {norm} at step {position.step}.",
                "Set train.nonfinite to skip, or lower train.learning_rate under another name.",
            )
        # Save before evaluating: a crash in the evaluation loses nothing.
        if position.step == steps or time.monotonic() - last_saved > 60 * recipe.save_minutes:
            save()
            last_saved = time.monotonic()
        val_loss = evaluate()
        on_progress(_progress(plan.task, row, total, val_loss))
    seconds = before_s + time.monotonic() - began
    used = replace(settings, attention=attention, compile=compiled)
    return Trained(
        position, seconds, metrics.val_losses.get(0), metrics.restarts, used, tuple(notes)
    )


def _use_attention(
    model: "PreTrainedModel", recipe: Train, settings: Settings, notes: list[str]
) -> str:
    if settings.attention != "matmul":
        return "model"
    register_matmul_attention()
    if not agrees_with_the_model(model, model.config.get_text_config().vocab_size, recipe.seq_len):
        notes.append("the model's attention is more than causal: its own kernel is used")
        return "model"
    model.set_attn_implementation(MATMUL_ATTENTION)
    return "matmul"


def _loss_function(
    model: "PreTrainedModel",
    settings: Settings,
    recipe: Train,
    stream: TokenStream,
    notes: list[str],
) -> "tuple[Callable[[Tensor], Tensor], bool]":
    def eager(samples: "Tensor") -> "Tensor":
        return loss_sum(model, samples)

    if not settings.compile:
        return eager, False
    compiled = torch.compile(eager, dynamic=False)
    try:  # the first call compiles; its gradients are thrown away
        samples = next(iter(_micro_batches(stream, recipe, 0)))
        with settings.autocast():
            compiled(samples.to(settings.device)).backward()
    except Exception as error:
        # Whatever the compiler trips over, the eager step computes the same.
        notes.append(f"torch.compile failed ({type(error).__name__}), going on without it")
        return eager, False
    finally:
        model.zero_grad(set_to_none=True)
    return compiled, True


def _micro_batches(stream: TokenStream, recipe: Train, step: int) -> "Iterator[Tensor]":
    """The samples of a step, (B, T + 1) int64 at a time: a function of seed and step alone."""
    per_step = recipe.batch_tokens // recipe.seq_len
    num_samples = stream.num_samples(recipe.seq_len)
    for first in range(step * per_step, (step + 1) * per_step, recipe.micro_batch):
        ids, position, stop = [], first, first + recipe.micro_batch
        while position < stop:
            epoch, index = divmod(position, num_samples)
            count = min(stop - position, num_samples - index)
            ids.append(sample_ids(index, index + count, num_samples, recipe.seed, epoch))
            position += count
        yield torch.from_numpy(stream.samples(np.concatenate(ids), recipe.seq_len))


def _progress(task: str, row: Mapping[str, Any], total: int, val_loss: float | None) -> Progress:
    facts = {"tokens/s": f"{row['tokens_per_s']:,.0f}"}
    if row["loss"] is not None:
        facts = {"loss": f"{row['loss']:.4f}"} | facts
    message = "" if val_loss is None else f"step {row['step']}: val_loss {val_loss:.4f}"
    return Progress(task, row["tokens"], total, "tokens", facts, message)
