"""Which sizes a target may have, and which of them is tried next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from inheritune.errors import RecipeError
from inheritune.model_files.directory import ModelDirectory
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Grow
from inheritune.run_directory import Run
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.training_spec import TrainingSpec, specs_for
from inheritune.surgery.cut_points import cut_point, find_pattern
from inheritune.surgery.sizes import Sizes

__all__ = ["Growth", "first_layers", "grown_sizes", "grown_specs", "round_spec"]


@dataclass(frozen=True)
class Growth:
    """The sizes of a target.

    Attributes:
        grow: The recipe's section.
        sizes: Numbers of layers that it may have, ascending. The first is that of the first round;
            above it, only those at which the reference is safe to cut.
        notes: Where those are not all, in sentences.
    """

    grow: Grow
    sizes: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, reference: ModelDirectory, first: int, most: int) -> Self:
        """Look at which layers a reference is safe to cut.

        Args:
            recipe: Says how to grow. The size of the first round is moved up to a safe one unless
                the recipe gives it.
            reference: Only its headers and its config are looked at.
            first: Layers of the first round.
            most: The most there may be.
        """
        total = reference.layers
        pattern = find_pattern(reference, Sizes(reference).layers)
        points = [cut_point(reference.config, total, n, pattern) for n in range(first, most + 1)]
        safe = [point.layers for point in points if point.is_safe]
        if recipe.inherit.layers is None and safe:
            sizes = tuple(safe)
        else:
            sizes = (first, *(layers for layers in safe if layers > first))
        notes = []
        if sizes[0] != first:
            why = next(point.reason for point in points if point.layers == first)
            notes.append(f"The first round has {sizes[0]} layers, not {first}: {why}.")
        if len(sizes) < most - sizes[0] + 1 and recipe.grow.add:
            where = f"is safe to cut: {pattern}" if pattern else "can be cut"
            notes.append(f"Rounds have {_listed(sizes)} layers, where the reference {where}.")
        return cls(recipe.grow, sizes, tuple(notes))

    def next_size(self, tried: Mapping[int, bool]) -> int | None:
        """The size of the next round.

        Args:
            tried: Sizes of the rounds so far, in their order, and whether they matched.

        Returns:
            None when there is none: the target is found, or cannot be.
        """
        if not tried:
            return self.sizes[0]
        if not self.grow.add or len(tried) == self.grow.max_rounds:
            return None
        return self._between(tried) if self.grow.search == "bisect" else self._above(tried)

    def _above(self, tried: Mapping[int, bool]) -> int | None:
        last = [*tried][-1]
        larger = [size for size in self.sizes if size > last]
        if tried[last] or not larger:
            return None
        return next((size for size in larger if size >= last + self.grow.add), larger[-1])

    def _between(self, tried: Mapping[int, bool]) -> int | None:
        places = {size: place for place, size in enumerate(self.sizes)}
        matched = [places[size] for size, did in tried.items() if did]
        high = min(matched, default=len(self.sizes))
        low = max((places[size] for size in tried if places[size] < high), default=-1)
        # The first size has been tried: nothing smaller is asked for.
        return None if low < 0 or high - low <= 1 else self.sizes[(low + high) // 2]

    def longest(self) -> list[int]:
        """The sizes of all rounds, if none of them matches: no search takes more, or larger."""
        tried: dict[int, bool] = {}
        while (size := self.next_size(tried)) is not None:
            tried[size] = False
        return [*tried]

    def ends(self) -> tuple[int, ...]:
        """The sizes that the target may end with."""
        return self.sizes if self.grow.search == "bisect" else tuple(self.longest())

    def __str__(self) -> str:
        most = len(self.longest())
        if self.grow.search == "linear" or most == 1:
            return f"{most} at most; the run stops at the first that matches"
        return (
            f"{most} at most, of {self.sizes[0]} to {self.sizes[-1]} layers: each halves the range "
            f"of {len(self.sizes)} safe cut points, and the smallest that matches is the target"
        )


def _listed(sizes: Sequence[int]) -> str:
    said = [str(size) for size in sizes]
    if len(said) > 8:
        said = [*said[:6], "...", said[-1]]
    return ", ".join(said)


def round_spec(
    recipe: Recipe,
    reference_layers: int,
    rounds: Sequence[TrainingResult],
    layers: int,
) -> TrainingSpec:
    """The training of the target's next round.

    Args:
        recipe: Has the target.
        reference_layers: Of the reference.
        rounds: Those before.
        layers: Of this one.
    """
    tokens = recipe.tokens_of(recipe.target)
    assert tokens is not None  # the recipe refuses equal_compute for the target
    arm = specs_for(recipe, recipe.target, reference_layers, layers, tokens)[0]
    if rounds and recipe.grow.weights == "keep":
        seen = sum(trial.tokens for trial in rounds) // recipe.train.seq_len
        arm = replace(arm, grown_from=rounds[-1].path, first_sample=seen)
    elif rounds:
        arm = replace(arm, goes_on=False)
    return arm


def grown_sizes(rounds: Sequence[int], target: int) -> list[int]:
    """The sizes of a variant that starts grown: those of the target's rounds up to the target.

    Args:
        rounds: Layers of each, in their order.
        target: Layers of the target.
    """
    return sorted({size for size in rounds if rounds[0] <= size <= target})


def grown_specs(
    recipe: Recipe, name: str, reference_layers: int, sizes: Sequence[int], first_tokens: int
) -> list[TrainingSpec]:
    """The trainings of a variant that starts grown; none where one size was enough.

    Args:
        recipe: Has the variant.
        name: Of the variant.
        reference_layers: Of the reference.
        sizes: See `grown_sizes`.
        first_tokens: That the target's first round was trained on.
    """
    tokens = recipe.tokens_of(name)
    assert tokens is not None  # the recipe refuses equal_compute for it
    train = recipe.train
    of, before, seen = recipe.target, sizes[0], first_tokens
    arms = []
    for layers in sizes[1:]:
        arm = specs_for(recipe, name, reference_layers, layers, tokens)[0]
        made_of = (
            f"{before} trained layers of {of}, and layers {before}-{layers - 1} of the reference"
        )
        arms.append(
            replace(
                arm,
                grown_from=Run(Path()).variant(of, before).as_posix(),
                first_sample=seen // train.seq_len,
                made_of=made_of + arm.made_of,
                goes_on=layers != sizes[-1],
            )
        )
        of, before = name, layers
        seen += train.num_steps(tokens) * train.batch_tokens
    return arms


def first_layers(recipe: Recipe, reference: Reference) -> tuple[int, int]:
    """Layers of the first round, and the most there may be.

    Where the recipe takes the advice and the reference was not looked at yet: half of them.

    Raises:
        RecipeError: The recipe asks for more layers than the reference has.
    """
    most = recipe.grow.max_layers or reference.layers
    layers = recipe.inherit.layers
    if layers == "advice":
        layers = min(reference.advised_layers or max(1, reference.layers // 2), most)
    layers = layers or max(1, reference.layers // 2)
    asked = {"inherit.layers": layers, "grow.max_layers": most}
    own = {name: variant.layers for name, variant in recipe.variants.items()}
    asked |= {f"variants.{n}.layers": count for n, count in own.items() if isinstance(count, int)}
    for key, value in asked.items():
        if value > reference.layers:
            raise RecipeError(
                f"{key} is {value}, but {reference.name} has {reference.layers} layers.",
                f"Choose between 1 and {reference.layers}.",
            )
    if layers > most:
        raise RecipeError(
            f"inherit.layers is {layers}, above grow.max_layers {most}.", "Raise the second."
        )
    return layers, most
