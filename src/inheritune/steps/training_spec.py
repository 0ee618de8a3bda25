"""The trainings that a recipe's variants come to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError
from inheritune.recipe.schema import Recipe, Train
from inheritune.recipe.variants import Variant
from inheritune.run_directory import Run
from inheritune.surgery.parts import describe_parts
from inheritune.surgery.selection import (
    LayerFacts,
    choose_layers,
    describe_selection,
    stated_count,
)

__all__ = ["TrainingSpec", "depth_of", "specs_for"]


@dataclass(frozen=True)
class TrainingSpec:
    """One training to be done.

    Attributes:
        variant: Name in the recipe.
        start: As the variant's; ``"trained"`` for a model as it is.
        layers: Of the model trained.
        tokens: Training tokens, repeats counted.
        model: Model directory that a ``"trained"`` start takes its weights from, where it lies.
        grown_from: Directory of the training whose end it goes on from, within the run.
        first_sample: Position in the order of samples at which it begins.
        kept: Layers of the reference that are inherited; None: the first.
        parts: What is inherited of them, see `parts.fresh_names`.
        lr_scale: Of the peak learning rate.
        warmup_tokens: None: the recipe's.
        made_of: What it begins with, in words; empty where `start` says it all.
        distill: The variant's section `distill`, as JSON values; None: it learns from text alone.
        reference: Model directory that a distillation learns from.
        goes_on: Whether a later training may go on from its end, which is then kept.
        seed: Of data order and fresh weights; None: the recipe's ``train.seed``.
        repeats: Whether it repeats a training with a further seed, which its folder then names.
    """

    variant: str
    start: str
    layers: int
    tokens: int
    model: str | None = None
    grown_from: str | None = None
    first_sample: int = 0
    kept: Sequence[int] | None = None
    parts: str = "all"
    lr_scale: float = 1.0
    warmup_tokens: int | None = None
    made_of: str = ""
    distill: dict[str, Any] | None = None
    reference: str | None = None
    goes_on: bool = False
    seed: int | None = None
    repeats: bool = False

    def folder_in(self, run: Run) -> Path:
        """The training's own directory."""
        return run.variant(self.variant, self.layers, self.seed if self.repeats else None)

    def start_in(self, folder: Path) -> Path:
        """The directory it starts from: its own model, or ``start/`` of the training's folder."""
        return folder / "start" if self.model is None else Path(self.model)

    def settings(self, train: Train) -> Train:
        """The recipe's section, with what the arm has of its own."""
        own: dict[str, float] = {"learning_rate": train.learning_rate * self.lr_scale}
        if self.seed is not None:
            own["seed"] = self.seed
        if self.warmup_tokens is not None:
            own["warmup_tokens"] = self.warmup_tokens
        return train.model_copy(update=own)

    @property
    def keeps_moments(self) -> bool:
        """Whether the optimizer goes on from where it stood: in a model that has grown."""
        return self.start in ("inherit", "grown") and self.grown_from is not None

    @property
    def task(self) -> str:
        """Name shown with the progress and in the ledger."""
        seed = f", seed {self.seed}" if self.repeats else ""
        return f"{self.variant}, {self.layers} layers{seed}"


def depth_of(variant: Variant, reference_layers: int, target_layers: int) -> int:
    """How many layers a variant is trained with.

    Args:
        variant: Says it, or leaves it to the target.
        reference_layers: Of the reference.
        target_layers: Of the target, when it is the variant's turn.

    Raises:
        RecipeError: It lists layers that are not there.
    """
    if variant.start == "half-width" or variant.layers == "all":
        return reference_layers
    return variant.layers or stated_count(variant.select, reference_layers) or target_layers


def specs_for(
    recipe: Recipe,
    name: str,
    reference_layers: int,
    layers: int,
    tokens: int,
    layers_by_rank: Sequence[int] | None = None,
) -> list[TrainingSpec]:
    """The trainings of a variant with its first seed, in their order: one, and of stacking two.

    Args:
        recipe: Has the variant.
        name: Of the variant.
        reference_layers: Of the reference.
        layers: Of the variant, see `depth_of`.
        tokens: Of each training.
        layers_by_rank: Layers of the reference, that of lowest attention rank first; None: not
            known yet.

    Raises:
        RecipeError: The reference has no such layers, or they cannot be halved.
    """
    variant = recipe.variants[name]
    arm = TrainingSpec(
        variant=name,
        start=variant.start,
        layers=layers,
        tokens=tokens,
        parts=variant.parts,
        lr_scale=variant.lr_scale,
        warmup_tokens=variant.warmup_tokens,
        seed=recipe.seeds_of(name)[0],
        distill=None if variant.distill is None else variant.distill.model_dump(mode="json"),
    )
    if name == recipe.target:
        controls = [other.start for other in recipe.variants.values()]
        arm = replace(arm, goes_on=recipe.grow.weights == "keep" or "grown" in controls)
    if variant.start == "inherit":
        facts = LayerFacts(reference_layers, layers_by_rank)
        kept = choose_layers(variant.select, facts, layers, estimate=True)
        arm = replace(arm, kept=None if kept == tuple(range(layers)) else list(kept))
    before = []
    if variant.start == "stacking":
        half = _half(layers)
        fresh = replace(arm, start="fresh", layers=half)
        said = f"fresh weights, to be stacked{_own_rate(fresh)}"
        before = [replace(fresh, made_of=said)]
        steps = recipe.train.num_steps(tokens)
        arm = replace(
            arm,
            grown_from=Run(Path()).variant(name, half).as_posix(),
            first_sample=steps * recipe.train.batch_tokens // recipe.train.seq_len,
        )
    elif variant.start == "hybrid-stacking":
        _half(layers)
    made_of = _made_of(arm)
    if variant.select == "lazy":
        made_of = _made_of_lazy(arm, layers_by_rank is not None)
    return [*before, replace(arm, made_of=made_of)]


def _half(layers: int) -> int:
    if layers % 2:
        raise RecipeError(
            f"half of {layers} layers cannot be stacked twice.", "Choose an even number of layers."
        )
    return layers // 2


def _made_of(arm: TrainingSpec) -> str:
    is_plain = arm.start in ("inherit", "fresh") and arm.kept is None and arm.parts == "all"
    if is_plain and not _own_rate(arm):
        return ""
    if arm.start == "grown":  # the rest is said where it is known what it goes on from
        return _own_rate(arm)
    half = _layers(arm.layers // 2)
    said = {
        "fresh": "fresh weights",
        "stacking": f"its own {half}, trained from fresh weights, twice",
        "hybrid-stacking": f"the first {half} of the reference, twice",
        "half-width": "all layers of the reference, half as wide",
    }.get(arm.start, f"the first {_layers(arm.layers)} of the reference")
    if arm.kept is not None:
        said = f"{describe_selection(arm.kept)} of the reference"
    if arm.parts == "outer-only":
        said = "embeddings, positions, final norm and head of the reference"
    if "paper-code" in arm.parts:
        said = f"{arm.parts}: {said}"
    if arm.parts != "all":
        said += f"; fresh: {describe_parts(arm.parts).rstrip(',')}"
    return said + _own_rate(arm)


def _made_of_lazy(arm: TrainingSpec, known: bool) -> str:
    said = f"the {_layers(arm.layers)} of the reference with the lowest attention rank"
    said += f": {describe_selection(arm.kept or range(arm.layers))}" if known else ""
    if arm.parts != "all":
        said += f"; fresh: {describe_parts(arm.parts).rstrip(',')}"
    return said + ("" if known else " (which, a run finds out)") + _own_rate(arm)


def _layers(count: int) -> str:
    return "layer" if count == 1 else f"{count} layers"


def _own_rate(arm: TrainingSpec) -> str:
    rate = f"; peak learning rate x {arm.lr_scale:g}" if arm.lr_scale != 1 else ""
    if arm.warmup_tokens is None:
        return rate
    return f"{rate}; warm-up {arm.warmup_tokens:,} token{'s' * (arm.warmup_tokens != 1)}"
