"""When a training is saved: by the clock, at a new best val_loss, and at its end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.recipe.schema import Train
from inheritune.system.processes import Processes
from inheritune.training.checkpoint import Position, save_checkpoint
from inheritune.training.metrics import Metrics
from inheritune.training.setup import TrainingSetup

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CheckpointSchedule"]


@dataclass
class CheckpointSchedule:
    """The checkpoints of one training.

    Saved are its end, a step every `train.save_minutes`, and the step of a new best val_loss unless
    one was saved for that reason less than `train.save_minutes` ago: a loss that keeps falling
    would otherwise be saved at every validation. So the best checkpoint that is kept is that of the
    lowest val_loss among the steps that were saved.

    Attributes:
        folder: Where they lie.
        model: What is saved.
        ready: Its optimizer and settings.
        recipe: How often, and how many are kept.
        inputs: Whatever decides the result, see `save_checkpoint`.
        warn: What may differ with a warning.
        metrics: Knows the val_losses.
        processes: That share the model.
        step: Of the newest one; 0: there is none.
    """

    folder: Path
    model: "nn.Module"
    ready: TrainingSetup
    recipe: Train
    inputs: Mapping[str, Any]
    warn: Mapping[str, Any]
    metrics: Metrics
    processes: Processes
    step: int = 0
    _last_s: float = field(default_factory=time.monotonic)
    _best_s: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether it is time to save, by the clock of this process."""
        return self._long_after(self._last_s)

    def save(self, position: Position) -> None:
        """Save now, where nothing is saved of this step yet; called by all processes.

        Raises:
            MachineError: The disk is full or gone; earlier checkpoints are untouched.
        """
        if not position.step or position.step == self.step:
            return
        place = (self.folder, self.model, self.ready.optimizer, position)
        save_checkpoint(
            *place,
            *(self.inputs, self.recipe.keep, self.processes),
            val_losses=self.metrics.val_losses,
            warn=self.warn,
            settings=self.ready.settings.compared(),
        )
        self.step, self._last_s = position.step, time.monotonic()

    def validated(self, position: Position) -> None:
        """Save the step that was validated just now, if it is worth it; see the class."""
        if self.metrics.best_step != position.step or position.step in (0, self.step):
            return
        if self.processes.on_main(lambda: self._long_after(self._best_s)):
            self.save(position)
            self._best_s = time.monotonic()

    def _long_after(self, moment: float) -> bool:
        return time.monotonic() - moment > 60 * self.recipe.save_minutes
