"""The trainings of a run, counted before they are done."""

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.checkpoints.config import layer_count
from inheritune.checkpoints.flops import EVALUATION_SHARE
from inheritune.inherit.devices import Price, Speed
from inheritune.inherit.sizes import Counts, Sizes
from inheritune.recipe import Distill, Recipe

__all__ = ["PlannedTraining", "Planner"]


@dataclass(frozen=True)
class PlannedTraining:
    """One training of a run.

    Attributes:
        name: Of the variant, or ``"reference"``.
        round: Of the target, from 1; None for all others.
        start: ``"inherit"`` or ``"fresh"``.
        layers: Of the model trained.
        params: Its parameters.
        tokens: Trained on, in whole steps.
        steps: Optimizer steps.
        epochs: Passes over the text; None: not known before the text is prepared.
        flops: Of the training, without its validations.
        reference_flops: Of them, those of the reference's forward passes in a distillation; None
            where there is none.
        beside: Whether the reference runs beside it.
        price: Time, and money where a rate was named; None: no device was named.
    """

    name: str
    round: int | None
    start: str
    layers: int
    params: int
    tokens: int
    steps: int
    epochs: float | None
    flops: float
    price: Price | None
    reference_flops: float | None = None
    beside: bool = False


class Planner:
    """Counts the trainings of a recipe.

    Args:
        recipe: What would be done.
        sizes: Of its reference.
        speed: What it would run on; None: FLOPs only.
        unique: Tokens of an epoch; None: not known.
    """

    def __init__(
        self, recipe: Recipe, sizes: Sizes, speed: Speed | None, unique: int | None
    ) -> None:
        self._recipe, self._sizes, self._speed, self._unique = recipe, sizes, speed, unique
        self._stored: dict[tuple[int, float], int] = {}  # tokens, by what is kept of each

    def all(self, depths: Sequence[int]) -> tuple[PlannedTraining, ...]:
        """The reference's training if there is one, every round, every control."""
        recipe = self._recipe
        self._stored = {}
        before = []
        if recipe.reference.train is not None:
            trained = recipe.reference.train
            depth = layer_count(trained.config)
            before = [self._training("reference", None, "fresh", depth, trained.tokens)]
        wanted = recipe.variants[recipe.target].tokens or recipe.train.tokens
        assert isinstance(wanted, int)  # the recipe refuses equal_compute for the target
        target = recipe.variants[recipe.target]
        rounds = [
            self._training(recipe.target, number, "inherit", depth, wanted, target.distill)
            for number, depth in enumerate(depths, 1)
        ]
        spent = sum(training.flops for training in [*before, *rounds])
        controls = []
        for name, variant in recipe.variants.items():
            if name == recipe.target:
                continue
            layers, distill = variant.layers or depths[-1], variant.distill
            if variant.tokens == "equal_compute":
                each = self._counts(layers).flops_per_token
                each += self._forward if distill is not None and distill.top_k is None else 0.0
                tokens = round(spent / each)
            else:
                tokens = variant.tokens or recipe.train.tokens
            controls.append(self._training(name, None, variant.start, layers, tokens, distill))
        return (*before, *rounds, *controls)

    def _training(
        self,
        name: str,
        number: int | None,
        start: str,
        layers: int,
        wanted: int,
        distill: Distill | None = None,
    ) -> PlannedTraining:
        counts, batch = self._counts(layers), self._recipe.train.batch_tokens
        steps = max(1, wanted // batch)  # as train.loop.plan_steps
        tokens = steps * batch
        forwards = None if distill is None else self._forward * self._asked(distill, tokens)
        flops = counts.flops_per_token * tokens + (forwards or 0.0)
        return PlannedTraining(
            name=name,
            round=number,
            start=start,
            layers=layers,
            params=counts.params,
            tokens=tokens,
            steps=steps,
            epochs=tokens / self._unique if self._unique else None,
            flops=flops,
            price=None if self._speed is None else self._speed.price(flops),
            reference_flops=forwards,
            beside=distill is not None and distill.top_k is None,
        )

    def _asked(self, distill: Distill, tokens: int) -> int:
        """Tokens that the reference is run on: all, or those that nobody has had stored yet."""
        if distill.top_k is None:
            return tokens
        kept = (distill.top_k, distill.temperature)
        before, needed = self._stored.get(kept, 0), min(tokens, self._unique or tokens)
        self._stored[kept] = max(before, needed)
        return max(0, needed - before)

    @property
    def _forward(self) -> float:
        """FLOPs of the reference's forward pass over a token."""
        return self._counts(self._sizes.reference.layers).flops_per_token * EVALUATION_SHARE

    def _counts(self, layers: int) -> Counts:
        return self._sizes.counts(range(layers), self._recipe.train.seq_len)
