"""Count the trainings of a run before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inheritune.model_files.config import layer_count
from inheritune.model_files.flops import (
    EVALUATION_SHARE,
    first_int,
    hidden_loss_flops,
    hidden_size,
)
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Distill, Variant
from inheritune.repair.places import LayerSizes, fitted_features, repair_flops
from inheritune.steps.growth import grown_sizes, grown_specs
from inheritune.steps.initial_weights import frozen_shape
from inheritune.steps.limits import weights_bytes
from inheritune.steps.seeds import repeat_specs
from inheritune.steps.tournament import candidate_spec, stages_of
from inheritune.steps.training_spec import (
    TrainingSpec,
    first_count,
    inherited_layers,
    layers_of,
    selection_of,
    specs_for,
)
from inheritune.steps.training_task import published_dtype
from inheritune.surgery.half_width import half_width_headers
from inheritune.surgery.selection import needed_measurement
from inheritune.surgery.sizes import Counts, Sizes
from inheritune.surgery.ways import LayerFacts
from inheritune.system.devices import Price, Speed

if TYPE_CHECKING:
    from inheritune.training.models import Shape


@dataclass(frozen=True)
class PlannedTraining:
    """One training of a run, estimated."""

    name: str  # name of the variant, or "reference"
    round: int | None  # round of the target, from 1; None for all other trainings
    start: str  # initial weights, as in the recipe; the first training of stacking is "fresh"
    layers: int
    params: int
    bytes: int  # size of the published weights
    tokens: int  # training tokens, in whole steps
    steps: int
    epochs: float | None  # passes over the text; None: not known before the text is prepared
    flops: float  # FLOPs of the training and of the repair of its start, without validation
    price: Price | None  # time, and money if a rate is known; None: no devices were named
    made_of: str = ""  # initial weights in words; empty if `start` says it all
    # Part of `flops` that is forward passes of the reference in a distillation; None without
    # distillation.
    reference_flops: float | None = None
    # Part of `flops` that repairs the start; None without a repair.
    repair_flops: float | None = None
    # FLOPs of a repair that is made for an earlier training of the run, and taken from there; not
    # part of `flops`. None: there is no such repair.
    shared_repair_flops: float | None = None
    beside: bool = False  # true if the reference runs beside the training
    trained: int | None = None  # parameters that are trained; None: all
    lowest_trained_layer: int = 0  # first layer that gradients pass through
    compares_hidden: bool = False  # true if hidden states are compared with the reference's
    # Seed of a training that repeats another; None for the first of its variant.
    seed: int | None = None
    # Trainings of a stage of a tournament, which tokens and FLOPs are of together; None: this one.
    candidates: int | None = None

    @property
    def trained_params(self) -> int:
        """Number of parameters that are trained."""
        return self.params if self.trained is None else self.trained


class Planner:
    """Counts the trainings of a recipe; ``unique`` are the tokens of an epoch, if known."""

    def __init__(
        self, recipe: Recipe, sizes: Sizes, speed: Speed | None, unique: int | None
    ) -> None:
        self._recipe, self._sizes, self._speed, self._unique = recipe, sizes, speed, unique
        self._facts = LayerFacts(sizes.reference.layers)
        # Tokens with stored predictions of the reference, by (top_k, seed); complete after `all`.
        self.stored: dict[tuple[int, int], int] = {}
        # Bytes of the fp32 weights beside rounded models; complete after `all`.
        self.kept_masters = 0  # of all models that a later training starts from
        self._repaired: set[tuple[Any, ...]] = set()  # cuts that are repaired, see `_repair_key`
        self.passing_master = 0  # of the largest of the others, which goes once it is measured

    def flops_per_token(self, layers: int) -> float:
        """FLOPs of a size of the target for each token of a training."""
        name = self._recipe.target_name
        chosen = inherited_layers(self._recipe, name, self._facts, layers)
        return self._sizes.counts(chosen, self._recipe.train.seq_len).flops_per_token

    def all(self, round_sizes: Sequence[int]) -> tuple[PlannedTraining, ...]:
        """Count the reference's training, if any, and every round and control with every seed."""
        recipe = self._recipe
        self.stored, self._repaired = {}, set()
        self.kept_masters = self.passing_master = 0

        # --- the reference ---
        before = []
        if recipe.reference.train is not None:
            trained = recipe.reference.train
            layers = layer_count(trained.config)
            before = [self._training(TrainingSpec("reference", "fresh", layers, trained.tokens))]

        before += self._tournament(round_sizes[0])

        # --- the rounds of the target ---
        tokens = recipe.tokens_of(recipe.target_name)
        assert tokens is not None  # the recipe refuses equal_compute for the target
        rounds: list[PlannedTraining] = []
        round_specs: list[TrainingSpec] = []
        for number, layers in enumerate(round_sizes, 1):
            spec = self._specs(recipe.target_name, layers, tokens)[0]
            if recipe.grow.weights == "keep":  # as in derive: a round continues in the text
                samples = sum(training.tokens for training in rounds) // recipe.train.seq_len
                spec = replace(spec, first_sample=samples)
            elif rounds:
                spec = replace(spec, keeps_end=False)
            round_specs.append(spec)
            rounds.append(self._training(spec, number))

        # --- the controls ---
        specs: list[TrainingSpec] = []
        for name, variant in recipe.variants.items():
            if name != recipe.target_name and variant.start == "grown":
                sizes = grown_sizes(round_sizes, round_sizes[-1])
                specs += grown_specs(recipe, name, self._facts, sizes, rounds[0].tokens)
            elif name != recipe.target_name:
                layers = layers_of(variant, self._facts.layers, round_sizes[-1])
                tokens = recipe.tokens_of(name)
                if tokens is None:
                    paid = [*before, *rounds]
                    own = [t for t in paid if t.candidates is None]
                    flops = sum(t.flops + (t.shared_repair_flops or 0.0) for t in own)
                    tokens = self._equal_compute_tokens(name, variant, layers, flops)
                specs += self._specs(name, layers, tokens)
        repeats = repeat_specs(recipe, round_specs, specs)
        return (*before, *rounds, *(self._training(spec) for spec in [*specs, *repeats]))

    def _tournament(self, layers: int) -> list[PlannedTraining]:
        """A row for each stage of a tournament, if every candidate is another cut."""
        recipe = self._recipe
        stages = []
        for number, (candidates, tokens) in enumerate(stages_of(recipe), 1):
            spec = candidate_spec(recipe, self._facts, layers, tokens)
            if number > 1:  # a start is repaired once
                spec = replace(spec, repair="none", repair_tokens=0)
            one = self._training(spec)
            flops = candidates * one.flops
            stages.append(
                replace(
                    one,
                    name=f"tournament, stage {number}",
                    tokens=candidates * one.tokens,
                    steps=candidates * one.steps,
                    flops=flops,
                    price=None if self._speed is None else self._speed.price(flops),
                    made_of=f"{candidates} candidates of {one.tokens:,} tokens each",
                    reference_flops=one.reference_flops and candidates * one.reference_flops,
                    repair_flops=one.repair_flops and candidates * one.repair_flops,
                    candidates=candidates,
                )
            )
        return stages

    def _equal_compute_tokens(self, name: str, variant: Variant, layers: int, flops: float) -> int:
        """Compute the tokens after which a control has used so many FLOPs."""
        per_token = self._counts(TrainingSpec(name, variant.start, layers, 0)).flops_per_token
        if variant.distill is not None and variant.distill.top_k is None:
            per_token += self._forward_flops
        return round(flops / per_token)

    def _specs(self, name: str, layers: int, tokens: int) -> list[TrainingSpec]:
        return specs_for(self._recipe, name, self._facts, layers, tokens)

    def _training(self, spec: TrainingSpec, number: int | None = None) -> PlannedTraining:
        counts, train = self._counts(spec), self._recipe.train
        steps = train.num_steps(spec.tokens)
        tokens = steps * train.batch_tokens
        distill = None if spec.distill is None else Distill.model_validate(spec.distill)
        reference_flops = None
        if distill is not None:
            reference_flops = self._forward_flops * self._forward_tokens(distill, spec, tokens)
            if distill.hidden is not None:
                reference_flops += hidden_loss_flops(self._sizes.section, spec.layers) * tokens
        shape = self._frozen_shape(spec)
        flops_each = counts.flops_per_token if shape is None else shape.flops_per_token
        repair_flops, shared_repair_flops = self._repair_flops(spec), None
        if repair_flops is not None:
            if (key := self._repair_key(spec)) in self._repaired:
                repair_flops, shared_repair_flops = 0.0, repair_flops
            self._repaired.add(key)
        flops = flops_each * tokens + (reference_flops or 0.0) + (repair_flops or 0.0)
        dtype = self._dtype(spec)
        if dtype != "F32" and (spec.keeps_end or spec.is_stacked):
            self.kept_masters += weights_bytes(counts.params)
        elif dtype != "F32":
            self.passing_master = max(self.passing_master, weights_bytes(counts.params))
        return PlannedTraining(
            name=spec.variant,
            round=number,
            start=spec.start,
            layers=spec.layers,
            params=counts.params,
            bytes=weights_bytes(counts.params, dtype),
            tokens=tokens,
            steps=steps,
            epochs=tokens / self._unique if self._unique else None,
            flops=flops,
            price=None if self._speed is None else self._speed.price(flops),
            made_of=spec.made_of,
            reference_flops=reference_flops,
            repair_flops=repair_flops,
            shared_repair_flops=shared_repair_flops,
            beside=distill is not None and distill.top_k is None,
            trained=None if shape is None else shape.trained,
            lowest_trained_layer=0 if shape is None else shape.lowest_trained_layer,
            compares_hidden=distill is not None and distill.hidden is not None,
            seed=spec.seed if spec.is_repeat else None,
        )

    def _frozen_shape(self, spec: TrainingSpec) -> "Shape | None":
        """Size and cost of a training that freezes weights; None if it trains all."""
        if spec.only is None:
            return None
        return frozen_shape(self._sizes.reference, spec, self._recipe.train.seq_len)

    def _repair_flops(self, spec: TrainingSpec) -> float | None:
        """FLOPs of a repair; None where there is none, or none that can be folded in."""
        if spec.repair == "none":
            return None
        section, seq_len = self._sizes.section, self._recipe.train.seq_len
        width, layers = hidden_size(section), self._sizes.layers
        features = {layer: fitted_features(layers[layer].form, width) for layer in spec.layer_map}
        known = {layer: count for layer, count in features.items() if count is not None}
        if len(known) < len(features):
            return None
        head = width * (first_int(section, ("vocab_size",)) or 0)
        sizes = LayerSizes([layer.params for layer in layers], known, width, head)
        windows = max(1, spec.repair_tokens // seq_len)
        return repair_flops(spec.layer_map, spec.repair, sizes, windows, seq_len)

    def _repair_key(self, spec: TrainingSpec) -> tuple[Any, ...]:
        """Tell which repairs a run makes once: those of the same cut, on the same windows.

        Where a measurement decides the cut, those of the same selection and size.
        """
        recipe, total = self._recipe, self._facts.layers
        selection = selection_of(recipe, spec.variant)
        is_grown = spec.variant == recipe.target_name and spec.layers != first_count(recipe, total)
        measured = None
        if needed_measurement(selection, grows=is_grown) is not None:
            measured = selection, spec.variant if is_grown else ""
        seed = spec.train_section(recipe.train).seed
        return spec.layer_map, measured, spec.repair, spec.repair_tokens, seed

    def _dtype(self, spec: TrainingSpec) -> str:
        is_reference = spec.variant not in self._recipe.variants
        return "F32" if is_reference else published_dtype(self._recipe, self._sizes.reference)

    def _forward_tokens(self, distill: Distill, spec: TrainingSpec, tokens: int) -> int:
        """Count the tokens that the reference runs on: all, or those not stored before.

        What this training will store is added to `stored`. Storing always begins at the first
        sample, even if the training begins later.
        """
        if distill.top_k is None:
            return tokens
        train = spec.train_section(self._recipe.train)
        key = (distill.top_k, train.seed)
        needed = spec.first_sample * train.seq_len + tokens
        stored, needed = self.stored.get(key, 0), min(needed, self._unique or needed)
        self.stored[key] = max(stored, needed)
        return max(0, needed - stored)

    @property
    def _forward_flops(self) -> float:
        """FLOPs of the reference's forward pass per token."""
        sizes, seq_len = self._sizes, self._recipe.train.seq_len
        whole = sizes.counts(range(sizes.reference.layers), seq_len)
        return whole.flops_per_token * EVALUATION_SHARE

    def _counts(self, spec: TrainingSpec) -> Counts:
        sizes = self._sizes
        if spec.start == "half-width":
            sizes = Sizes(half_width_headers(sizes.reference))
        return sizes.counts(spec.inherited_layers or range(spec.layers), self._recipe.train.seq_len)
