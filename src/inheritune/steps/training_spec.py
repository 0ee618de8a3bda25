"""Turn the variants of a recipe into the trainings that they consist of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from inheritune.errors import RecipeError
from inheritune.recipe.schema import Recipe
from inheritune.recipe.training import Train
from inheritune.recipe.variants import Variant
from inheritune.repair.places import places_before_gaps
from inheritune.run_directory import Run
from inheritune.surgery.parts import PARTS
from inheritune.surgery.selection import (
    choose_layers,
    describe_selection,
    give_back_layers,
    needed_measurement,
    stated_count,
    way_of,
)
from inheritune.surgery.ways import LayerFacts

_GAP = "gap"  # in `Train.only`: the layers behind which others are left out


@dataclass(frozen=True)
class TrainingSpec:
    """What to train, from which start, and for how long. All fields are JSON values."""

    variant: str  # name in the recipe
    start: str  # the variant's ``start``, or ``"trained"`` for a model as it is
    layers: int  # transformer layers of the trained model
    tokens: int  # training tokens, repeats counted
    model: str | None = None  # directory of the weights of a ``"trained"`` start
    # Directory, within the run, of the training whose final model was grown
    grown_from: str | None = None
    # Place in this model of each layer of the grown one; None: it has the first layers of both
    grown_places: Sequence[int] | None = None
    first_sample: int = 0  # position in the order of samples at which the training begins
    # Layers of the reference that are inherited; None: the first ``layers``
    inherited_layers: Sequence[int] | None = None
    parts: str = "all"  # parts of these layers that are inherited, see `parts.fresh_names`
    repair: str = "none"  # how the cut is repaired before the training, see `repair.inherit`
    repair_tokens: int = 0  # training tokens that the repair is fitted on
    lr_scale: float = 1.0  # factor on the recipe's peak learning rate
    warmup_tokens: int | None = None  # None: the recipe's
    only: Sequence[str] | None = None  # weights that are trained, see `Train.only`; None: all
    made_of: str = ""  # the start in words; empty where ``start`` says it all
    # The variant's section `distill`; None: the training learns from text alone
    distill: dict[str, Any] | None = None
    reference_dir: str | None = None  # model directory of the reference; only for a distillation
    reference_digest: str | None = None  # digest of this model; only for a distillation
    # Whether the last checkpoint is kept, so that a later training can continue it
    keeps_end: bool = False
    # Seed of data order and fresh weights; None: the recipe's ``train.seed``
    seed: int | None = None
    is_stacked: bool = False  # whether a later training starts from this one's weights, twice
    # Whether it repeats a training with another seed; its directory names the seed
    is_repeat: bool = False

    def directory_in(self, run: Run) -> Path:
        """The training's own directory."""
        return run.variant(self.variant, self.layers, self.seed if self.is_repeat else None)

    def train_section(self, train: Train) -> Train:
        """The recipe's section `train`, with the values that this training changes."""
        changes: dict[str, Any] = {"learning_rate": train.learning_rate * self.lr_scale}
        changes["only"] = self.only
        if self.seed is not None:
            changes["seed"] = self.seed
        if self.warmup_tokens is not None:
            changes["warmup_tokens"] = self.warmup_tokens
        return train.model_copy(update=changes)

    @property
    def layer_map(self) -> tuple[int, ...]:
        """Layers of the reference that an inherited start has, in their order."""
        return tuple(self.inherited_layers or range(self.layers))

    def grown(self, training: str, smaller: Sequence[int], first_sample: int) -> Self:
        """The same training, continued from a smaller model.

        Args:
            training: Directory, within the run, of the training that made it.
            smaller: Layers of the reference that it has, ascending; all are in this one.
            first_sample: Position in the order of samples at which this training begins.
        """
        places = [self.layer_map.index(layer) for layer in smaller]
        return replace(
            self,
            grown_from=training,
            grown_places=None if places == list(range(len(places))) else places,
            first_sample=first_sample,
        )

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether AdamW's moments of the smaller model are taken over into the grown one."""
        return self.start in ("inherit", "grown") and self.grown_from is not None

    @property
    def title(self) -> str:
        """Name of the training in progress events and in the ledger."""
        seed = f", seed {self.seed}" if self.is_repeat else ""
        return f"{self.variant}, {self.layers} layers{seed}"


def layers_of(variant: Variant, reference_layers: int, target_layers: int) -> int:
    """Number of layers that a variant is trained with; if it leaves that open, the target's.

    Raises:
        RecipeError: The variant selects layers that the reference does not have.
    """
    if variant.start == "half-width" or variant.layers == "all":
        return reference_layers
    return variant.layers or stated_count(variant.select, reference_layers) or target_layers


def specs_for(
    recipe: Recipe,
    name: str,
    facts: LayerFacts,
    layers: int,
    tokens: int,
) -> list[TrainingSpec]:
    """List the trainings of a variant with its first seed, in order: one, or two of stacking.

    Args:
        facts: About the reference. Where a selection needs a measurement that was not made yet, the
            number of layers is right, and the layers are not.
        layers: From `layers_of`.
        tokens: Training tokens of each training.

    Raises:
        RecipeError: The reference has no such layers, or their number cannot be halved.
    """
    # --- what all starts share ---
    variant = recipe.variants[name]
    spec = TrainingSpec(
        variant=name,
        start=variant.start,
        layers=layers,
        tokens=tokens,
        parts=variant.parts,
        lr_scale=variant.lr_scale,
        warmup_tokens=variant.warmup_tokens,
        only=None if variant.starts_fresh else variant.only or recipe.train.only,
        seed=recipe.seeds_of(name)[0],
        distill=None if variant.distill is None else variant.distill.model_dump(mode="json"),
    )
    if name == recipe.target_name:
        has_grown = any(other.start == "grown" for other in recipe.variants.values())
        spec = replace(spec, keeps_end=recipe.grow.weights == "keep" or has_grown)

    # --- what a start has of its own ---
    first_half = []
    if variant.start == "inherit":
        chosen = inherited_layers(recipe, name, facts, layers)
        is_prefix = chosen == tuple(range(layers))
        spec = replace(
            spec,
            inherited_layers=None if is_prefix else list(chosen),
            only=trained_parts(spec.only, chosen, facts.layers),
        )
        is_target = name == recipe.target_name
        repair = recipe.inherit.repair if is_target else variant.repair
        if repair != "none" and layers < facts.layers:
            spec = replace(spec, repair=repair, repair_tokens=recipe.inherit.repair_tokens)
    elif variant.start == "stacking":
        # Half of the layers are trained from fresh weights; their end, twice, is the second start.
        half = replace(spec, start="fresh", layers=_half(layers), is_stacked=True)
        made_of = f"fresh weights, to be stacked{_own_rate(half)}"
        first_half = [replace(half, made_of=made_of)]
        train = recipe.train
        spec = replace(
            spec,
            grown_from=Run(Path()).variant(name, half.layers).as_posix(),
            first_sample=train.num_steps(tokens) * train.batch_tokens // train.seq_len,
        )
    elif variant.start == "hybrid-stacking":
        _half(layers)
    return [
        *first_half,
        replace(spec, made_of=_made_of(spec, _measured_choice(recipe, spec, facts))),
    ]


def trained_parts(
    only: Sequence[str] | None, layer_map: Sequence[int], total: int
) -> list[str] | None:
    """List the weights that are trained, with the layers before gaps in place of ``gap``.

    Args:
        only: See `Train.only`; None: all.
        layer_map: Layers of the reference that are inherited, of ``total``.

    Raises:
        RecipeError: No layer is left out.
    """
    if only is None or _GAP not in only:
        return None if only is None else [*only]
    gaps = places_before_gaps(layer_map, total)
    if not gaps:
        raise RecipeError(
            f"only: {_GAP} names nothing: no layer is left out behind another.",
            "Choose fewer layers, or name layers, such as last:1.",
        )
    listed = ",".join(f"{place}-{place}" for place in gaps)
    return [listed if name == _GAP else name for name in only]


def selection_of(recipe: Recipe, name: str) -> str | None:
    """The selection of a variant: ``select`` of its own, or of `inherit` for the target."""
    return recipe.inherit.select if name == recipe.target_name else recipe.variants[name].select


def inherited_layers(recipe: Recipe, name: str, facts: LayerFacts, layers: int) -> tuple[int, ...]:
    """Layers of the reference that a variant inherits at a size; those of the target are nested."""
    selection = selection_of(recipe, name)
    if name == recipe.target_name:
        first = first_count(recipe, facts.layers)
        if layers > first:
            return give_back_layers(selection, facts, first, layers, estimate=True)
        if layers < first:
            selection = way_of(selection) or selection
    return choose_layers(selection, facts, layers, estimate=True)


def first_count(recipe: Recipe, total: int) -> int:
    """Number of layers of the first round, but for advice: as the recipe says, else half."""
    layers = recipe.inherit.layers
    try:
        stated = stated_count(recipe.inherit.select, total)
    except RecipeError as error:
        raise RecipeError(f"inherit.select: {error.message}", error.hint) from error
    return layers if isinstance(layers, int) else stated or max(1, total // 2)


def _measured_choice(recipe: Recipe, spec: TrainingSpec, facts: LayerFacts) -> str:
    """Describe in words how layers are chosen by a measurement; empty if by none."""
    selection = selection_of(recipe, spec.variant) if spec.start == "inherit" else None
    need = needed_measurement(selection)
    if need is None:
        return ""
    by = "with the lowest attention rank" if need == "layers_by_rank" else f"by {way_of(selection)}"
    text = f"the {_layers(spec.layers)} of the reference {by}"
    if getattr(facts, need) is None:
        return f"{text} (which ones, the run measures)"
    return f"{text}: {describe_selection(spec.layer_map)}"


def _half(layers: int) -> int:
    if layers % 2:
        raise RecipeError(
            f"half of {layers} layers cannot be stacked twice.", "Choose an even number of layers."
        )
    return layers // 2


# -- the start in words


def _made_of(spec: TrainingSpec, measured_choice: str) -> str:
    is_inherited_whole = (
        spec.inherited_layers is None
        and spec.parts == "all"
        and spec.repair == "none"
        and not measured_choice
    )
    if spec.start in ("inherit", "fresh") and is_inherited_whole and not _own_rate(spec):
        return ""
    if spec.start == "grown":  # `growth.grown_specs` knows from what, and completes the text
        return _own_rate(spec)
    half = _layers(spec.layers // 2)
    text = {
        "fresh": "fresh weights",
        "stacking": f"its own {half}, trained from fresh weights, twice",
        "hybrid-stacking": f"the first {half} of the reference, twice",
        "half-width": "all layers of the reference, half as wide",
    }.get(spec.start, f"the first {_layers(spec.layers)} of the reference")
    if measured_choice:
        text = measured_choice
    elif spec.inherited_layers is not None:
        text = f"{describe_selection(spec.inherited_layers)} of the reference"
    if spec.parts == "outer-only":
        text = "embeddings, positions, final norm and head of the reference"
    if "paper-code" in spec.parts:
        text = f"{spec.parts}: {text}"
    if spec.repair != "none":
        text += f"; repaired: {spec.repair}"
    return text + _fresh_parts(spec) + _own_rate(spec)


def _fresh_parts(spec: TrainingSpec) -> str:
    return "" if spec.parts == "all" else f"; fresh: {PARTS[spec.parts].rstrip(',')}"


def _layers(count: int) -> str:
    return "layer" if count == 1 else f"{count} layers"


def _own_rate(spec: TrainingSpec) -> str:
    rate = f"; only {', '.join(spec.only)} trained" if spec.only else ""
    rate += f"; peak learning rate x {spec.lr_scale:g}" if spec.lr_scale != 1 else ""
    if spec.warmup_tokens is None:
        return rate
    return f"{rate}; warm-up {spec.warmup_tokens:,} token{'s' * (spec.warmup_tokens != 1)}"
