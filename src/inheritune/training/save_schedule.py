"""Decide when a training is saved: by the clock, and at a new best val_loss."""

import time


class CheckpointSchedule:
    """The clock of a training's checkpoints.

    A loss that keeps falling would be saved at every validation; so a best one is saved only if the
    last one that was saved for that reason is at least `train.save_minutes` old.
    """

    def __init__(self, minutes: float, saved_step: int) -> None:
        self.saved_step = saved_step
        self._interval_s = 60 * minutes
        self._saved_s = self._best_saved_s = time.monotonic()

    def due(self) -> bool:
        """Return whether the newest checkpoint is old enough."""
        return time.monotonic() - self._saved_s > self._interval_s

    def best_due(self) -> bool:
        """Return whether a new best val_loss is worth a checkpoint."""
        return time.monotonic() - self._best_saved_s > self._interval_s

    def saved(self, step: int, is_best: bool) -> None:
        """Note that a step was saved, by the clock or for its val_loss."""
        self.saved_step, self._saved_s = step, time.monotonic()
        if is_best:
            self._best_saved_s = self._saved_s
