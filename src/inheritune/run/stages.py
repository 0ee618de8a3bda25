"""Record the stages of a run in run.json as they happen, with what each has made known."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inheritune.recipe.schema import Recipe
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import GAINS_STAGE, StageRecord, work_to_come
from inheritune.steps.growth import Growth
from inheritune.steps.job import Job
from inheritune.steps.training_spec import TrainingSpec
from inheritune.system.environment import utc_now
from inheritune.system.progress import Progress


class Stages:
    """The stages of a run: those that ended, the one that goes on, and those to come.

    A run whose last stage has ended keeps the record that it has.
    """

    def __init__(self, job: Job) -> None:
        record = job.run.record()
        self._run, self._has_result = job.run, bool(record.result)
        # Its models are looked at behind the result: it may have been stopped there.
        self._is_over = self._has_result and all(
            row.began_at and row.seconds is not None for row in record.stages
        )
        self._tell = job.on_progress
        self._rows: list[StageRecord] = list(record.stages)
        self._now: int | None = None  # index of the stage that goes on
        self._began = 0.0  # its beginning by the clock, less its seconds of earlier starts
        self._level: float | None = None  # the reference loss
        self._val_loss: float | None = None  # the last of the training that goes on
        self._first: tuple[int, float] | None = None  # tokens and clock of its first event

    def plan(self, recipe: Recipe, growth: Growth) -> None:
        """List the stages to come, once the sizes of the target are known."""
        if len(self._rows) <= 1:  # a run that is continued has its plan
            self._rows += _planned(recipe, growth.longest())
            self._write()

    def begin(self, name: str, spec: TrainingSpec | None = None) -> None:
        """End the stage that goes on, and begin another, unless the plan does not have it."""
        self._end()
        if spec is None and self._rows and all(row.name != name for row in self._rows):
            return
        index = _place(self._rows, name, spec)
        row = self._rows[index] if index < len(self._rows) else StageRecord()
        changes: dict[str, Any] = {
            "name": name,
            "began_at": utc_now(),
            "seconds": None,
            "optional": False,
        }
        if spec is not None:
            changes |= {"variant": spec.variant, "layers": spec.layers, "tokens": spec.tokens}
        # Stages come in their order: one that was passed over is not needed any more.
        begun = [one for one in self._rows[:index] if one.began_at]
        self._rows = [*begun, row.model_copy(update=changes), *self._rows[index + 1 :]]
        self._now, self._began = len(begun), time.monotonic() - (row.seconds or 0.0)
        self._val_loss = self._first = None
        self._write()
        self._tell(Progress(name))

    def end(self) -> None:
        """End the stage that goes on, which is the last."""
        self._end()
        self._rows = [row for row in self._rows if row.began_at]
        self._write()

    def known(self, **sections: Any) -> None:
        """Record sections of run.json that the final record replaces."""
        if "benchmark" in sections:
            self._level = sections["benchmark"].val_loss
        if not self._has_result:
            self._run.update(RunRecord(**sections))

    def on_progress(self, progress: Progress) -> None:
        """Pass an event on; that of a training gets its round, its loss and the time of the run."""
        row = None if self._now is None else self._rows[self._now]
        if row is not None and row.variant and progress.task == row.name and progress.total:
            progress = replace(progress, facts=self._facts(row, progress))
        self._tell(progress)

    def _facts(self, row: StageRecord, progress: Progress) -> dict[str, str]:
        """Put round, val_loss and the time of the run before what the training tells itself."""
        own, facts = dict(progress.facts), {}
        if "val_loss" in own:
            self._val_loss = float(own.pop("val_loss"))
        rounds = [one for one in self._rows if one.variant == row.variant and one.seed is None]
        if len(rounds) > 1 and row in rounds:  # a training with another seed is no round
            facts["round"] = f"{rounds.index(row) + 1} of {len(rounds)}"
        if self._val_loss is not None:
            facts["val"] = f"{self._val_loss:.2f}"
            if self._level is not None:
                gap = self._val_loss - self._level
                facts["val"] += f" (reference {self._level:.2f}, {gap:+.2f})"
        left_s = self._seconds_left(row, progress)
        if left_s is not None:
            facts["done in"] = f"about {_rough(left_s)}"
        return facts | own

    def _seconds_left(self, row: StageRecord, progress: Progress) -> float | None:
        """Estimate the seconds to the end of all trainings that are certain to come."""
        now = time.monotonic()
        if self._first is None:
            self._first = (progress.done, now)
        tokens, seconds = progress.done - self._first[0], now - self._first[1]
        layers = row.layers or 1
        if tokens <= 0:
            return None
        work = (progress.total - progress.done) * layers + work_to_come(self._rows, layers)
        return work * seconds / (tokens * layers)

    def _end(self) -> None:
        if self._now is None:
            return
        seconds = round(time.monotonic() - self._began, 1)
        self._rows[self._now] = self._rows[self._now].model_copy(update={"seconds": seconds})
        self._now = None

    def _write(self) -> None:
        if not self._is_over:
            self._run.update(RunRecord(stages=self._rows))


def _planned(recipe: Recipe, sizes: Sequence[int]) -> list[StageRecord]:
    target = recipe.target_name
    others = [name for name in recipe.variants if name != target]
    rounds = [
        StageRecord(
            name=f"{target}, {layers} layers",
            variant=target,
            layers=layers,
            tokens=recipe.tokens_of(target),
            optional=number > 0,
        )
        for number, layers in enumerate(sizes)
    ]
    repeats = [
        StageRecord(
            name=f"{name}, seed {seed}", variant=name, seed=seed, tokens=recipe.tokens_of(name)
        )
        for name in (target, *others)
        for seed in recipe.seeds_of(name)[1:]
    ]
    return [
        StageRecord(name="text"),
        StageRecord(name="reference loss"),
        *rounds,
        *(StageRecord(name=name, variant=name, tokens=recipe.tokens_of(name)) for name in others),
        *repeats,
        *([StageRecord(name=GAINS_STAGE)] if recipe.evaluate.gains else []),
        *([StageRecord(name="attention")] if recipe.analyze is not None else []),
        *([StageRecord(name="samples")] if recipe.report.prompts else []),
        *([StageRecord(name="tasks")] if recipe.evaluate.tasks else []),
    ]


def _place(rows: Sequence[StageRecord], name: str, spec: TrainingSpec | None) -> int:
    """Find the row of a stage by its name, else one that was planned for its variant."""
    for index, row in enumerate(rows):
        if row.name == name:
            return index
    seed = spec.seed if spec is not None and spec.is_repeat else None
    for index, row in enumerate(rows):
        if (
            spec is not None
            and not row.began_at
            and (row.variant, row.seed) == (spec.variant, seed)
        ):
            return index
    # Not planned: before all that is still to come.
    return next((n for n, row in enumerate(rows) if not row.began_at), len(rows))


def _rough(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
