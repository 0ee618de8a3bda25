"""Repeat trainings with further seeds, and summarise all seeds of a training in one row."""

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

# The row of a single seed, within the row of a variant; then what the latter averages and adds up.
_SEED_KEYS = (
    *("seed", "val_loss", "val_loss_se", "difference", "difference_se"),
    *("start_val_loss", "tokens", "seconds", "flops", "path", "fidelity"),
)
_MEANS = ("difference", "seconds", "flops", "reference_flops")
_SUMS = ("restarts", "skipped")


@dataclass(frozen=True)
class Repeated:
    """A variant at one size, trained with one seed or several.

    Attributes:
        results: The first seed's, then those that repeat it; at least one.
    """

    results: Sequence[TrainingResult]

    @property
    def first(self) -> TrainingResult:
        """The training with the first seed."""
        return self.results[0]

    @property
    def val_loss(self) -> float:
        """Mean over seeds, nats per token."""
        return sum(result.val_loss for result in self.results) / len(self.results)

    @property
    def val_loss_sd(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        if len(self.results) < 2:
            return None
        return float(np.std([result.val_loss for result in self.results], ddof=1))

    @property
    def windows(self) -> NDArray[np.float64]:
        """Loss of every window, (W,) nats per token, mean over seeds: they share the windows."""
        mean: NDArray[np.float64] = np.mean([result.windows for result in self.results], axis=0)
        return mean

    def row(self, reference_windows: Sequence[float]) -> dict[str, Any]:
        """The entry of run.json: the first seed's summary, means, spread, and a row for each seed.

        Args:
            reference_windows: The reference's loss per window, nats per token.
        """
        results = self.results
        losses = [result.val_loss for result in results]
        row = self.first.summary() | {
            "val_loss": self.val_loss,
            "val_loss_sd": self.val_loss_sd,
            "val_loss_min": min(losses),
            "val_loss_max": max(losses),
            "num_seeds": len(results),
        }
        if len(results) > 1:
            for key in _SUMS:
                row[key] = sum(getattr(result, key) for result in results)
            for key in _MEANS:
                row[key] = sum(getattr(result, key) for result in results) / len(results)
            # A standard error over windows belongs to one training; the spread over seeds, to all.
            row["val_loss_se"] = None
            row["difference_se"] = _standard_error(self.windows - np.array(reference_windows))
            row["start_val_loss"] = _mean([result.start_val_loss for result in results])
            row["fidelity"] = _mean_fidelity(results)
        row["seeds"] = [{key: getattr(result, key) for key in _SEED_KEYS} for result in results]
        return row


def together(
    results: Sequence[TrainingResult], repeats: Sequence[TrainingResult]
) -> list[Repeated]:
    """Group each training, which had the first seed, with those that repeat it."""
    return [
        Repeated([first, *(r for r in repeats if (r.name, r.layers) == (first.name, first.layers))])
        for first in results
    ]


def repeat_specs(
    recipe: Recipe, rounds: Sequence[TrainingSpec], controls: Sequence[TrainingSpec]
) -> list[TrainingSpec]:
    """List the trainings with further seeds: all variants with their second seed, then the third.

    Args:
        rounds: The target's, up to its final size. The last one is repeated; where rounds continue
            from one another, all are.
        controls: Specs of the controls with their first seeds; a repeat trains on as many tokens.
    """
    target = _chain(recipe, rounds) if recipe.grow.weights == "keep" else rounds[-1:]
    specs = [*target, *controls]
    most = max(len(recipe.seeds_of(name)) for name in recipe.variants)
    return [
        _with_seed(spec, seed)
        for number in range(1, most)
        for spec in specs
        for seed in recipe.seeds_of(spec.variant)[number : number + 1]
    ]


def _chain(recipe: Recipe, rounds: Sequence[TrainingSpec]) -> list[TrainingSpec]:
    """Rounds that continue from one another, each from the tokens where the one before ended."""
    train, tokens, specs = recipe.train, 0, []
    for spec in rounds:
        specs.append(replace(spec, first_sample=tokens // train.seq_len))
        tokens += train.num_steps(spec.tokens) * train.batch_tokens
    return specs


def _with_seed(spec: TrainingSpec, seed: int) -> TrainingSpec:
    """The same training with another seed; a chain continues from its own trainings."""
    smaller = spec.grown_from
    if smaller is not None and Path(smaller).parent.name == spec.variant:
        smaller = f"{smaller}-seed-{seed}"  # as Run.variant
    return replace(spec, seed=seed, is_repeat=True, grown_from=smaller)


def _standard_error(values: NDArray[np.float64]) -> float | None:
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _mean_fidelity(results: Sequence[TrainingResult]) -> dict[str, float | None] | None:
    """Means over seeds, without standard errors over windows; None where one is missing."""
    known = [result.fidelity for result in results if result.fidelity is not None]
    if len(known) < len(results):
        return None
    return {key: _mean([one[key] for one in known]) for key in ("kl", "top1", "overlap")}


def _mean(values: Sequence[float | None]) -> float | None:
    """None if a value is missing."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None
