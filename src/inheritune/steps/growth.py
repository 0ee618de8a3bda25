"""Choose the sizes of a target: those that are possible, and the one to try next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

from inheritune.errors import RecipeError
from inheritune.model_files.directory import ModelDirectory
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Grow
from inheritune.run_directory import Run
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.training_spec import (
    TrainingSpec,
    first_count,
    inherited_layers,
    specs_for,
)
from inheritune.surgery.cut_points import cut_point, find_pattern
from inheritune.surgery.selection import (
    choose_layers,
    describe_selection,
    named_candidates,
    way_of,
)
from inheritune.surgery.sizes import Sizes
from inheritune.surgery.ways import LayerFacts


@dataclass(frozen=True)
class Growth:
    """The sizes that a target may have."""

    grow: Grow  # the recipe's section
    # Numbers of layers, ascending. The first is that of the first round; above it, only those
    # at which the reference is safe to cut.
    sizes: tuple[int, ...]
    notes: tuple[str, ...] = ()  # sentences about sizes that are left out
    total: int = 2**31  # layers of the reference

    @classmethod
    def of(cls, recipe: Recipe, reference: ModelDirectory, first: int, most: int) -> Self:
        """Find the sizes at which a reference is safe to cut.

        Args:
            recipe: The size of the first round is moved up to a safe one unless the recipe gives
                it.
            reference: Only its config and headers are read.
            most: Most layers of the target.
        """
        total = reference.layers
        if way_of(recipe.inherit.select) != "first":
            # Every layer keeps its kind, and the class says whether the model can be.
            return cls(recipe.grow, tuple(range(first, most + 1)), total=total)
        pattern = find_pattern(reference, Sizes(reference).layers)
        points = [cut_point(reference.config, total, n, pattern) for n in range(first, most + 1)]
        safe = [point.layers for point in points if point.is_safe]
        if recipe.inherit.layers is None and safe:
            sizes = tuple(safe)
        else:
            sizes = (first, *(layers for layers in safe if layers > first))
        notes = []
        if sizes[0] != first:
            reason = next(point.reason for point in points if point.layers == first)
            notes.append(f"The first round has {sizes[0]} layers, not {first}: {reason}.")
        if len(sizes) < most - sizes[0] + 1 and recipe.grow.add:
            where = f"is safe to cut: {pattern}" if pattern else "can be cut"
            notes.append(f"Rounds have {_listed(sizes)} layers, where the reference {where}.")
        return cls(recipe.grow, sizes, tuple(notes), total)

    def next_size(self, matched: Mapping[int, bool]) -> int | None:
        """The size of the next round.

        Args:
            matched: Whether each size that was tried matched, in the order of the rounds.

        Returns:
            None when there is none: the target was found, or no other size is left.
        """
        if not matched:
            return self.sizes[0]
        if not self.grow.add or len(matched) == self.grow.max_rounds:
            return None
        return self._between(matched) if self.grow.search == "bisect" else self._above(matched)

    def _above(self, matched: Mapping[int, bool]) -> int | None:
        last = [*matched][-1]
        larger = [size for size in self.sizes if size > last]
        if matched[last] or not larger:
            return None
        return next((size for size in larger if size >= last + self.grow.add), larger[-1])

    def _between(self, matched: Mapping[int, bool]) -> int | None:
        # Bisection over indices: sizes[high] is the smallest that matched, or past the end;
        # sizes[low] is the largest below it that did not match.
        indices = {size: index for index, size in enumerate(self.sizes)}
        high = min((indices[n] for n, match in matched.items() if match), default=len(self.sizes))
        low = max((indices[n] for n in matched if indices[n] < high), default=-1)
        # low < 0: the first size matched, and nothing smaller is wanted.
        return None if low < 0 or high - low <= 1 else self.sizes[(low + high) // 2]

    def above(self, layers: int) -> list[int]:
        """The sizes that layers put back give to one that was trained; all but the reference's."""
        return [size for size in self.sizes if layers < size < self.total]

    def before_next(self, matched: Mapping[int, bool]) -> list[int]:
        """The sizes above the last round's at which a match spares the training of the next round.

        Where there is no next round, all that are smaller than any that matched.
        """
        last, after = [*matched][-1], self.next_size(matched)
        if matched[last]:
            return []
        most = min((size for size, match in matched.items() if match), default=self.total)
        return [size for size in self.above(last) if size < most and size <= (after or most)]

    def longest(self) -> list[int]:
        """The sizes of all rounds if none of them matches: no search takes more, or larger ones."""
        matched: dict[int, bool] = {}
        while (size := self.next_size(matched)) is not None:
            matched[size] = False
        return [*matched]

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
    texts = [str(size) for size in sizes]
    if len(texts) > 8:
        texts = [*texts[:6], "...", texts[-1]]
    return ", ".join(texts)


def round_spec(
    recipe: Recipe, facts: LayerFacts, rounds: Sequence[TrainingResult], layers: int
) -> TrainingSpec:
    """The training of the target's next round, after ``rounds``."""
    tokens = recipe.tokens_of(recipe.target_name)
    assert tokens is not None  # the recipe refuses equal_compute for the target
    spec = specs_for(recipe, recipe.target_name, facts, layers, tokens)[0]
    if rounds and recipe.grow.weights == "keep":
        first_sample = sum(result.tokens for result in rounds) // recipe.train.seq_len
        smaller = inherited_layers(recipe, recipe.target_name, facts, rounds[-1].layers)
        return spec.grown(rounds[-1].path, smaller, first_sample)
    # A variant that starts grown continues from the first round only.
    return replace(spec, keeps_end=False) if rounds else spec


def grown_sizes(rounds: Sequence[int], target: int) -> list[int]:
    """The sizes of a variant that starts grown: those of the target's rounds, up to the target."""
    return sorted({size for size in rounds if rounds[0] <= size <= target})


def grown_specs(
    recipe: Recipe, name: str, facts: LayerFacts, sizes: Sequence[int], first_tokens: int
) -> list[TrainingSpec]:
    """List the trainings of a variant that starts grown; none where one size was enough.

    Args:
        sizes: From `grown_sizes`.
        first_tokens: Training tokens of the target's first round.
    """
    tokens = recipe.tokens_of(name)
    assert tokens is not None  # the recipe refuses equal_compute for it
    train = recipe.train
    maps = [inherited_layers(recipe, recipe.target_name, facts, size) for size in sizes]
    specs = []
    # The first training continues from the target's first round, each later one from its own.
    owner, tokens_before = recipe.target_name, first_tokens
    for smaller, larger in pairwise(maps):
        layers = len(larger)
        spec = specs_for(recipe, name, facts, layers, tokens)[0]
        new = describe_selection([layer for layer in larger if layer not in smaller])
        spec = replace(
            spec,
            inherited_layers=None if larger == tuple(range(layers)) else list(larger),
            made_of=f"{len(smaller)} trained layers of {owner}, and {new} of the reference"
            + spec.made_of,
            keeps_end=layers != sizes[-1],
        )
        training = Run(Path()).variant(owner, len(smaller)).as_posix()
        specs.append(spec.grown(training, smaller, tokens_before // train.seq_len))
        owner = name
        tokens_before += train.num_steps(tokens) * train.batch_tokens
    return specs


def first_layers(recipe: Recipe, reference: Reference) -> tuple[int, int]:
    """Layers of the first round, and the most that the target may have.

    Half of the layers, where the recipe takes the advice and attention is not measured yet.

    Raises:
        RecipeError: The recipe wants more layers than the reference has.
    """
    most = recipe.grow.max_layers or reference.layers
    layers = recipe.inherit.layers
    if layers == "advice":
        layers = min(reference.advised_layers or max(1, reference.layers // 2), most)
    layers = layers or first_count(recipe, reference.layers)
    counts = {"inherit.layers": layers, "grow.max_layers": most}
    for name, variant in recipe.variants.items():
        if isinstance(variant.layers, int):
            counts[f"variants.{name}.layers"] = variant.layers
    for key, count in counts.items():
        if count > reference.layers:
            raise RecipeError(
                f"{key} is {count}, but {reference.name} has {reference.layers} layers.",
                f"Choose between 1 and {reference.layers}.",
            )
    if layers > most:
        raise RecipeError(
            f"inherit.layers is {layers}, above grow.max_layers {most}.", "Raise the second."
        )
    _refuse_selection(recipe, LayerFacts(reference.layers), layers)
    return layers, most


def _refuse_selection(recipe: Recipe, facts: LayerFacts, layers: int) -> None:
    """Refuse a selection of the target that cannot be."""
    select = recipe.inherit.select
    try:
        choose_layers(select, facts, layers, estimate=True)
    except RecipeError as error:
        raise RecipeError(f"inherit.select: {error.message}", error.hint) from error
    if recipe.inherit.candidates is not None:
        try:
            named_candidates(recipe.inherit.candidates, facts.layers, layers)
        except RecipeError as error:
            raise RecipeError(f"inherit.candidates: {error.message}", error.hint) from error
