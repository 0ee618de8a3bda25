"""Train a model: the one loop, for one process and for many.

The way to the loss: `Loop.step` -> `step.forward_backward` -> `loss.TrainingObjective`, or
`kl_divergence.DistillationObjective` where there is a reference to learn from.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from inheritune.errors import DivergedError, Interrupted
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.checkpoint import load_moments, load_newest, save_checkpoint
from inheritune.training.checkpoint_files import drop_later_snapshots, keep_snapshot
from inheritune.training.fsdp import mesh_of
from inheritune.training.layers import moved_names
from inheritune.training.loop_config import LoopConfig, LoopResult
from inheritune.training.metrics import Metrics, OnRow, continued_row, step_row, val_row
from inheritune.training.optimizer import learning_rate, mean_and_clip, schedule_height
from inheritune.training.save_schedule import CheckpointSchedule
from inheritune.training.setup import TrainingSetup, make_setup
from inheritune.training.step import forward_backward
from inheritune.training.throughput import flops_per_token, forget_peak, mfu
from inheritune.training.trained_weights import freeze_all_but
from inheritune.training.training_inputs import TrainingInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_VALIDATIONS = 10  # per training, unless the recipe says how often


def train(
    model: "PreTrainedModel | Callable[[], PreTrainedModel]",
    config: LoopConfig,
    measure: Callable[[nn.Module], float],
    stop: StopFlag,
    *,
    on_progress: Listener = silent,
    on_row: OnRow | None = None,
    processes: Processes = ALONE,
) -> LoopResult:
    """Train a model in place, from its newest checkpoint or the one named, if there is one.

    The same inputs give the same weights, however often the training is stopped and continued. With
    another number of processes they give the same samples, and the same weights up to the order of
    sums.

    Args:
        model: fp32 weights; trained in place. Or what loads it: the processes of a machine then
            load it one after the other and keep their share, and the machine holds it once.
        measure: Returns the model's val_loss, nats per token. Called before the first step and on
            the way, not at the end; all processes call it at the same time.

    Raises:
        Interrupted: The stop flag was set; a checkpoint was saved.
        DivergedError: A loss or gradient was not finite and the recipe says stop.
        CheckpointError: Checkpoints exist, and none, or not the one named, can be continued from.
        RecipeError: The newest checkpoint belongs to other inputs.
        SourceError: The reference of a distillation has another vocabulary.
        MachineError: The disk is full, or another process ended.
    """
    # --- the model, ready to train; FLOPs are counted while it is whole ---
    forget_peak()  # of the trainings before this one
    mesh = mesh_of(processes, config.settings)  # by all at once

    def begin() -> tuple[TrainingSetup, float]:
        whole: Any = model if isinstance(model, nn.Module) else model()
        freeze_all_but(whole, config.train.only)
        flops = flops_per_token(whole, config.train.seq_len)
        given = config.train, config.settings, config.stream, processes, config.distillation, mesh
        return make_setup(whole, *given), flops

    setup, flops = begin() if isinstance(model, nn.Module) else processes.in_turn(begin)
    if (proof := setup.objective.proof) is not None:
        proof()
        setup.objective.proof = None

    # --- the position to go on from ---
    loop = Loop(config, setup, measure, stop, flops, on_row)
    for note in loop.notes:  # now: at the end it is too late to do anything about it
        on_progress(loop.progress(message=note))
    if loop.position.step:
        resumed = f"continued from step {loop.position.step} of {config.num_steps}"
        on_progress(loop.progress(message=resumed))

    # --- one turn per optimizer step; a stop may fall between saving and validating ---
    loop.snapshot()
    loop.validate()
    while loop.position.step < config.num_steps:
        row, save_due = loop.step()
        # Save before validating: a crash in the validation loses nothing.
        if save_due or loop.position.step in {config.num_steps, *config.snapshot_steps}:
            loop.save()
            loop.snapshot()
        val_loss = loop.validate()
        on_progress(loop.progress(row, val_loss))
    return loop.result()


class Loop:
    """A training under way: its position, and the methods that move it on.

    All processes make one, and call its methods at the same time. The constructor loads the newest
    checkpoint into the model of `setup`. Arguments and errors are those of `train`;
    `flops_per_token` is that of the whole model, for `mfu`.
    """

    def __init__(
        self,
        config: LoopConfig,
        setup: TrainingSetup,
        measure: Callable[[nn.Module], float],
        stop: StopFlag,
        flops_per_token: float,
        on_row: OnRow | None = None,
    ) -> None:
        self._config, self._setup, self._train = config, setup, config.train
        self._measure, self._stop, self._flops_per_token = measure, stop, flops_per_token
        self._processes = setup.processes
        self._checkpoints = config.folder / "checkpoints"
        self._snapshots = config.folder / "moments"
        self._inputs = TrainingInputs(
            config.inputs, config.noted_inputs, setup.settings.compared(), config.allowed_changes
        )
        eval_tokens = self._train.eval_every or config.total_tokens // _VALIDATIONS
        self._eval_steps = max(1, eval_tokens // self._train.batch_tokens)

        # --- load the checkpoint; what was written after it is dropped ---
        self.position, notes = load_newest(
            self._checkpoints,
            setup.model,
            setup.optimizer,
            self._inputs,
            self._processes,
            named=config.resume_from,
        )
        self.notes = (*notes, *setup.notes)
        if config.moments_from is not None and not self.position.step:
            at = config.moments_at
            name_of = moved_names(setup.model, at) if at else str
            live = setup.model, setup.optimizer
            load_moments(config.moments_from, *live, self._processes, name_of)
        self._metrics = Metrics.open(
            config.folder / "metrics.jsonl", self.position.step, self._processes, on_row
        )
        if not self._processes.rank:
            drop_later_snapshots(self._snapshots, self.position.step)  # of another branch (--from)
        self._schedule = CheckpointSchedule(self._train.save_minutes, self.position.step)
        distillation = config.distillation
        self._has_alpha_schedule = distillation is not None and distillation.alpha_changes
        self._began_s, self._seconds_before = time.monotonic(), self.position.elapsed_s
        if self.position.step:
            self._metrics.append(continued_row(self.position, self._epoch()))

    def step(self) -> tuple[dict[str, Any], bool]:
        """Take one optimizer step.

        Returns:
            The step's row of `metrics.jsonl`, and whether it is time to save.

        Raises:
            Interrupted: A signal asked to stop; a checkpoint was saved before.
        """
        train, began_s = self._train, time.monotonic()
        sequences = train.batch_tokens // train.seq_len  # of a step, over all processes
        first_sample = self._config.first_sample + self.position.step * sequences
        tokens = (self.position.step + 1) * train.batch_tokens
        if self._config.distillation is not None:
            height = schedule_height(train, tokens, self._config.total_tokens)
            self._setup.objective.alpha = self._config.distillation.alpha_at(height)

        # --- gradients, summed over micro-batches and processes ---
        sums = forward_backward(
            self._setup, self.position.step, first_sample, self._stop, save_due=self._schedule.due()
        )
        if sums.stop:
            self._save_and_stop()  # raises

        # --- their mean, clipped; the update, left out where a value is not finite ---
        mean_loss = sums.loss / sums.targets
        norm = mean_and_clip(self._setup.params, sums.targets, train.clip_norm)
        is_finite = math.isfinite(mean_loss) and math.isfinite(norm)
        rate = learning_rate(train, tokens, self._config.total_tokens)
        if is_finite:
            for group in self._setup.optimizer.param_groups:
                group["lr"] = rate
            self._setup.optimizer.step()
        self._setup.optimizer.zero_grad(set_to_none=True)
        step_s = time.monotonic() - began_s

        # --- the position moves on in any case ---
        self.position = replace(
            self.position,
            step=self.position.step + 1,
            tokens=self.position.tokens + train.batch_tokens,
            elapsed_s=self._elapsed_s(),
            skipped=self.position.skipped + (not is_finite),
            skips_in_a_row=0 if is_finite else self.position.skips_in_a_row + 1,
        )
        tokens_per_s, peak_flops = train.batch_tokens / step_s, self._config.peak_flops
        row = step_row(
            self.position,
            self._epoch(),
            loss=mean_loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens_per_s=tokens_per_s,
            mfu=mfu(tokens_per_s, self._flops_per_token, peak_flops, self._processes.size),
            parts=[part / sums.targets for part in sums.parts],
            alpha=self._setup.objective.alpha if self._has_alpha_schedule else None,
        )
        if not is_finite:
            samples = [first_sample, first_sample + sequences]
            row |= {"samples": samples, "ranks": sums.nonfinite_ranks}
        self._metrics.append(row)
        if not is_finite:
            self._refuse_nonfinite(mean_loss, norm)
        return row, sums.save

    def validate(self) -> float | None:
        """Measure the val_loss, nats per token, if it is time; save a new best one."""
        step = self.position.step
        # The end, and what is nearly the end, is left to whoever measures the published model.
        near_end = step and 2 * (self._config.num_steps - step) < self._eval_steps
        if near_end or step % self._eval_steps or step in self._metrics.val_losses:
            return None
        try:
            val_loss = self._measure(self._setup.logits_model)
        except Interrupted:
            self.save()
            raise
        self._setup.model.train()
        self._metrics.append(val_row(self.position, self._epoch(), val_loss))
        # What is the best and what is saved is known everywhere; the clock is that of process 0.
        is_new_best = self._metrics.best_step == step and step not in (0, self._schedule.saved_step)
        if is_new_best and self._processes.on_main(self._schedule.best_due):
            self.save(is_best=True)
        return val_loss

    def save(self, is_best: bool = False) -> None:
        """Save the position, unless it is saved already, or is the start."""
        if self.position.step in (0, self._schedule.saved_step):
            return
        save_checkpoint(
            self._checkpoints,
            self._setup.model,
            self._setup.optimizer,
            self.position,
            self._inputs,
            self._train.keep,
            self._processes,
            val_losses=self._metrics.val_losses,
            rows=self._metrics.synced(),
        )
        self._schedule.saved(self.position.step, is_best)

    def snapshot(self) -> None:
        """Keep the checkpoint of this step until the end, if it is one of `snapshot_steps`.

        Asked again at a start: a training may have been killed between saving and this.
        """
        if self.position.step in self._config.snapshot_steps and not self._processes.rank:
            keep_snapshot(self._checkpoints, self._snapshots, self.position.step)

    def progress(
        self, row: Mapping[str, Any] | None = None, val_loss: float | None = None, message: str = ""
    ) -> Progress:
        """Describe the position, for `on_progress`."""
        facts = {}
        if row is not None:
            loss = {} if row["loss"] is None else {"loss": f"{row['loss']:.4f}"}
            facts = loss | {"tokens/s": f"{row['tokens_per_s']:,.0f}"}
        if val_loss is not None:
            message = f"step {self.position.step}: val_loss {val_loss:.4f}"
            facts = facts | {"val_loss": f"{val_loss:.4f}"}
        config, tokens = self._config, self.position.tokens
        return Progress(config.task, tokens, config.total_tokens, "tokens", facts, message)

    def result(self) -> LoopResult:
        """Return the result of the training."""
        return LoopResult(
            position=self.position,
            seconds=self._elapsed_s(),
            start_val_loss=self._metrics.val_losses.get(0),
            restarts=self._metrics.restarts,
            settings=self._setup.settings,
            notes=self.notes,
        )

    def _save_and_stop(self) -> None:
        """Save the step before; the broken one is done again, whole, when the training goes on."""
        self.save()
        self._stop.heed(True)
        step, config = self.position.step, self._config
        where = f"saved at step {step:,}" if step else "before the first step"
        progress = f"{where} of {config.num_steps:,} steps ({self.position.tokens:,} tokens)"
        self._stop.check(f"{progress} of {config.task}")

    def _refuse_nonfinite(self, loss: float, norm: float) -> None:
        train = self._train
        if train.nonfinite == "skip" and self.position.skips_in_a_row <= train.max_skips:
            return
        skips = train.nonfinite == "skip"
        way_out = "raise train.max_skips" if skips else "set train.nonfinite to skip"
        raise DivergedError(
            f"{self._config.task}: loss {loss}, gradient norm {norm} at step {self.position.step}.",
            f"Lower train.learning_rate under another name, or {way_out}.",
        )

    def _elapsed_s(self) -> float:
        return self._seconds_before + time.monotonic() - self._began_s

    def _epoch(self) -> float:
        """Count the passes over the training tokens so far, in earlier trainings as well."""
        seq_len = self._train.seq_len
        before = self._config.first_sample * seq_len
        unique_tokens = self._config.stream.num_samples(seq_len) * seq_len
        return (before + self.position.tokens) / unique_tokens
