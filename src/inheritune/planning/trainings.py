"""The trainings of a run, counted before they are done.

What a plan tells in sentences: what may surprise, and what cannot be counted yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inheritune.model_files.config import layer_count
from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.planning.memory import Memory
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Distill
from inheritune.steps.growth import Growth, grown_sizes, grown_specs
from inheritune.steps.seeds import repeat_specs
from inheritune.steps.trainings import TrainingSpec, depth_of, specs_for
from inheritune.surgery.half_width import half_width_headers
from inheritune.surgery.sizes import Counts, Sizes
from inheritune.system.devices import Price, Speed

__all__ = ["PlannedTraining", "Planner", "growth_notes", "training_notes"]


@dataclass(frozen=True)
class PlannedTraining:
    """One training of a run.

    Attributes:
        name: Of the variant, or ``"reference"``.
        round: Of the target, from 1; None for all others.
        start: As the variant's; the first training of stacking is ``"fresh"``.
        layers: Of the model trained.
        params: Its parameters.
        tokens: Trained on, in whole steps.
        steps: Optimizer steps.
        epochs: Passes over the text; None: not known before the text is prepared.
        flops: Of the training, without its validations.
        reference_flops: Of them, those of the reference's forward passes in a distillation; None
            where there is none.
        beside: Whether the reference runs beside it.
        seed: Of a training that repeats another; None: it is the first of its variant.
        price: Time, and money where a rate was named; None: no device was named.
        made_of: What it begins with, in words; empty where `start` says it all.
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
    made_of: str = ""
    reference_flops: float | None = None
    beside: bool = False
    seed: int | None = None


class Planner:
    """Counts the trainings of a recipe.

    Args:
        recipe: What would be done.
        sizes: Of its reference.
        speed: What it would run on; None: FLOPs only.
        unique: Tokens of an epoch; None: not known.

    Attributes:
        stored: Tokens whose predictions are kept on disk, by how many ids of each are kept, the
            temperature and the seed; known when all trainings are.
    """

    def __init__(
        self, recipe: Recipe, sizes: Sizes, speed: Speed | None, unique: int | None
    ) -> None:
        self._recipe, self._sizes, self._speed, self._unique = recipe, sizes, speed, unique
        self.stored: dict[tuple[int, float, int], int] = {}

    def all(self, depths: Sequence[int]) -> tuple[PlannedTraining, ...]:
        """The reference's training if there is one, every round and control, with every seed."""
        recipe = self._recipe
        self.stored = {}
        before = []
        if recipe.reference.train is not None:
            trained = recipe.reference.train
            depth = layer_count(trained.config)
            before = [self._training(TrainingSpec("reference", "fresh", depth, trained.tokens))]
        wanted = recipe.tokens_of(recipe.target)
        assert wanted is not None  # the recipe refuses equal_compute for the target
        rounds: list[PlannedTraining] = []
        tried: list[TrainingSpec] = []
        for number, depth in enumerate(depths, 1):
            arm = self._arms(recipe.target, depth, wanted)[0]
            if recipe.grow.weights == "keep":  # as in derive: it goes on in the text
                seen = sum(training.tokens for training in rounds) // recipe.train.seq_len
                arm = replace(arm, first_sample=seen)
            tried.append(arm)
            rounds.append(self._training(arm, number))
        spent = sum(training.flops for training in [*before, *rounds])
        arms: list[TrainingSpec] = []
        for name, variant in recipe.variants.items():
            if name == recipe.target:
                continue
            if variant.start == "grown":
                sizes, total = grown_sizes(depths, depths[-1]), self._sizes.reference.layers
                grown = grown_specs(recipe, name, total, sizes, rounds[0].tokens)
                arms += grown
                continue
            layers = depth_of(variant, self._sizes.reference.layers, depths[-1])
            tokens = recipe.tokens_of(name)
            if tokens is None:
                each = self._counts(TrainingSpec(name, variant.start, layers, 0)).flops_per_token
                beside = variant.distill is not None and variant.distill.top_k is None
                tokens = round(spent / (each + (self._forward if beside else 0.0)))
            arms += self._arms(name, layers, tokens)
        controls = [self._training(arm) for arm in [*arms, *repeat_specs(recipe, tried, arms)]]
        return (*before, *rounds, *controls)

    def _arms(self, name: str, layers: int, tokens: int) -> list[TrainingSpec]:
        return specs_for(self._recipe, name, self._sizes.reference.layers, layers, tokens)

    def _training(self, arm: TrainingSpec, number: int | None = None) -> PlannedTraining:
        counts, train = self._counts(arm), self._recipe.train
        steps = train.num_steps(arm.tokens)
        tokens = steps * train.batch_tokens
        distill = None if arm.distill is None else Distill.model_validate(arm.distill)
        forwards = None
        if distill is not None:
            forwards = self._forward * self._asked(distill, arm, tokens)
        flops = counts.flops_per_token * tokens + (forwards or 0.0)
        return PlannedTraining(
            name=arm.variant,
            round=number,
            start=arm.start,
            layers=arm.layers,
            params=counts.params,
            tokens=tokens,
            steps=steps,
            epochs=tokens / self._unique if self._unique else None,
            flops=flops,
            price=None if self._speed is None else self._speed.price(flops),
            made_of=arm.made_of,
            reference_flops=forwards,
            beside=distill is not None and distill.top_k is None,
            seed=arm.seed if arm.repeats else None,
        )

    def _asked(self, distill: Distill, arm: TrainingSpec, tokens: int) -> int:
        """Tokens that the reference is run on: all, or those that nobody has had stored yet.

        What is stored begins with the order of samples, wherever the training does.
        """
        if distill.top_k is None:
            return tokens
        train = arm.settings(self._recipe.train)
        kept = (distill.top_k, distill.temperature, train.seed)
        needed = arm.first_sample * train.seq_len + tokens
        before, needed = self.stored.get(kept, 0), min(needed, self._unique or needed)
        self.stored[kept] = max(before, needed)
        return max(0, needed - before)

    @property
    def _forward(self) -> float:
        """FLOPs of the reference's forward pass over a token."""
        sizes, seq_len = self._sizes, self._recipe.train.seq_len
        whole = sizes.counts(range(sizes.reference.layers), seq_len)
        return whole.flops_per_token * EVALUATION_SHARE

    def _counts(self, arm: TrainingSpec) -> Counts:
        sizes = self._sizes
        if arm.start == "half-width":
            sizes = Sizes(half_width_headers(sizes.reference))
        return sizes.counts(arm.kept or range(arm.layers), self._recipe.train.seq_len)


def growth_notes(recipe: Recipe, growth: Growth) -> list[str]:
    """Notes on the rounds that there may be."""
    said = list(growth.notes)
    if len(growth.longest()) == 1:
        grown = [name for name, variant in recipe.variants.items() if variant.start == "grown"]
        said += [f"{name} is not trained: there is one round only." for name in grown]
    return said


def training_notes(
    recipe: Recipe,
    trainings: Sequence[PlannedTraining],
    unique: int | None,
    exact: bool,
    memory: Memory,
    speed: Speed | None,
) -> list[str]:
    """Of the trainings together.

    Args:
        recipe: What would be done.
        trainings: In the order of the run.
        unique: Tokens of an epoch; None: not known yet.
        exact: Whether that is counted, not asked for.
        memory: Of the training that needs the most.
        speed: What it would run on; None: no device was named.
    """
    said = []
    longest = max(training.tokens for training in trainings)
    if unique is None:
        said.append("Epochs are known when the text is: inheritune prepare.")
    elif longest > unique and not recipe.data.allow_repeat:
        said.append(
            f"The text has {'' if exact else 'at most '}{unique:,} tokens and the longest training "
            f"{longest:,}: it will be refused unless data.allow_repeat is true."
        )
    if speed is not None and memory.total > (speed.device.memory_bytes or memory.total):
        said.append(
            f"The estimated memory exceeds that of one {speed.device.title}: lower "
            "train.micro_batch, or choose another device."
        )
    distilled = dict.fromkeys(t.name for t in trainings if t.reference_flops)
    if distilled:
        said.append(
            f"FLOPs include the reference's forward passes for {', '.join(distilled)}: "
            f"{sum(t.reference_flops or 0.0 for t in trainings):.2e} together."
        )
    trained = recipe.reference.train
    if trained is not None and trained.keep_in is not None:
        said.append(
            f"The reference is taken from {trained.keep_in}, at no cost, where another run has "
            "left the same."
        )
    if any(v.tokens == "equal_compute" for v in recipe.variants.values()):
        said.append("A control with equal compute is counted for all rounds.")
    if recipe.inherit.layers == "advice":
        said.append(
            "Counted with half of the layers first; a run begins with as many as the analysis of "
            "the reference's attention advises."
        )
    return said
