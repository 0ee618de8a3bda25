"""Trainings repeated with further seeds, and what all seeds of a training come to together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.recipe.schema import Recipe
from inheritune.steps.result import TrainingResult
from inheritune.steps.training_spec import TrainingSpec

__all__ = ["Repeated", "repeat_specs", "together"]

_OWN = ("seed", "val_loss", "val_loss_se", "difference", "difference_se")
_OF_ONE_SEED = (*_OWN, "start_val_loss", "tokens", "seconds", "flops", "path")
_MEANS = ("difference", "seconds", "flops", "reference_flops")
_SUMS = ("restarts", "skipped")


@dataclass(frozen=True)
class Repeated:
    """A variant at one size, by seed.

    Attributes:
        trials: The first seed's, then those that repeat it; at least one.
    """

    trials: Sequence[TrainingResult]

    @property
    def first(self) -> TrainingResult:
        """That of the first seed."""
        return self.trials[0]

    @property
    def val_loss(self) -> float:
        """Mean over seeds, nats per token."""
        return sum(trial.val_loss for trial in self.trials) / len(self.trials)

    @property
    def val_loss_sd(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        if len(self.trials) < 2:
            return None
        return float(np.std([trial.val_loss for trial in self.trials], ddof=1))

    @property
    def windows(self) -> NDArray[np.float64]:
        """Loss of every window, (W,) nats per token, mean over seeds: they share the windows."""
        mean: NDArray[np.float64] = np.mean([trial.windows for trial in self.trials], axis=0)
        return mean

    def row(self, benchmark: Sequence[float]) -> dict[str, Any]:
        """For run.json: the first seed's summary, with means and spread, and a row for each seed.

        Args:
            benchmark: The reference's loss per window, nats per token.
        """
        trials, first = self.trials, self.first
        losses = [trial.val_loss for trial in trials]
        row = first.summary() | {
            "val_loss": self.val_loss,
            "val_loss_sd": self.val_loss_sd,
            "val_loss_min": min(losses),
            "val_loss_max": max(losses),
            "num_seeds": len(trials),
        }
        if len(trials) > 1:
            row |= {key: sum(getattr(t, key) for t in trials) / len(trials) for key in _MEANS}
            row |= {key: sum(getattr(t, key) for t in trials) for key in _SUMS}
            # Over windows, of one training; the spread over seeds stands beside it.
            row["val_loss_se"] = None
            row["difference_se"] = _standard_error(self.windows - np.array(benchmark))
            row["start_val_loss"] = _mean_of_known([t.start_val_loss for t in trials])
        row["seeds"] = [{key: getattr(trial, key) for key in _OF_ONE_SEED} for trial in trials]
        return row


def together(trials: Sequence[TrainingResult], repeats: Sequence[TrainingResult]) -> list[Repeated]:
    """Trainings with those that repeat them.

    Args:
        trials: Of the first seeds.
        repeats: Of all further seeds.
    """
    return [
        Repeated([t, *(r for r in repeats if (r.name, r.layers) == (t.name, t.layers))])
        for t in trials
    ]


def repeat_specs(
    recipe: Recipe, rounds: Sequence[TrainingSpec], controls: Sequence[TrainingSpec]
) -> list[TrainingSpec]:
    """The trainings with further seeds: every variant with its second, then with its third.

    Args:
        recipe: Has the seeds.
        rounds: The target's; the last one is repeated, and where layers are kept all before it.
        controls: Of the first seeds; each takes as many tokens again.
    """
    chain = _whole(recipe, rounds) if recipe.grow.weights == "keep" else rounds[-1:]
    arms = [*chain, *controls]
    most = max(len(recipe.seeds_of(name)) for name in recipe.variants)
    return [
        _with_seed(arm, seed)
        for number in range(1, most)
        for arm in arms
        for seed in recipe.seeds_of(arm.variant)[number : number + 1]
    ]


def _whole(recipe: Recipe, rounds: Sequence[TrainingSpec]) -> list[TrainingSpec]:
    """Rounds that go on from one another."""
    train, seen, arms = recipe.train, 0, []
    for arm in rounds:
        arms.append(replace(arm, first_sample=seen // train.seq_len))
        seen += train.num_steps(arm.tokens) * train.batch_tokens
    return arms


def _with_seed(arm: TrainingSpec, seed: int) -> TrainingSpec:
    """The same training with another seed; a chain goes on from its own, with that seed."""
    before = arm.grown_from
    if before is not None and Path(before).parent.name == arm.variant:
        before = f"{before}-seed-{seed}"  # as Run.variant
    return replace(arm, seed=seed, repeats=True, grown_from=before)


def _standard_error(values: NDArray[np.float64]) -> float | None:
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
