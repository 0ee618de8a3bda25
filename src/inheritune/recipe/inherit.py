"""Define the recipe section on the layers that are inherited, and how the best are found."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inheritune.recipe.values import Amount, Count, RecipeSection
from inheritune.recipe.variants import Repair

# Ways whose choices `select: auto` compares, unless the recipe names others.
DEFAULT_CANDIDATES = (
    *("first", "block", "greedy", "influence", "angular", "norm-ratio"),
    "strided",
)


class Tournament(RecipeSection):
    """Train candidates shortly, keep the better half, and train these for twice as long, and so on.

    Every training begins with the cut, is repaired and distilled as the target, and is measured on
    windows of the training text that it does not see. The validation text has no part in it.
    """

    tokens: Amount
    """Training tokens of each candidate in the last stage; each stage before has half as many."""
    by: Literal["kl", "val_loss"] = "kl"
    """What is compared on the held-out windows of the training text: the KL divergence from the
    reference, or the loss."""


class Inherit(RecipeSection):
    """Layers of the first round."""

    layers: Count | Literal["advice"] | None = None
    """Number of layers to inherit; null: half of the reference's; advice: the number of first
    layers suggested by its attention on training text."""
    select: str = "first"
    """Which layers to inherit, as select of a variant. block, greedy, influence, angular,
    norm-ratio and auto choose by scores on training text, and growth gives back the layers that
    were left out, the dearest first."""
    candidates: Annotated[list[str], Field(min_length=2)] | None = None
    """What select: auto compares: ways such as first, block or greedy, and lists such as 0-9,14;
    null: first, block, greedy, influence, angular, norm-ratio and strided."""
    tournament: Tournament | None = None
    """Let select: auto train these candidates shortly and take the best, not the one whose cut is
    closest to the reference untrained; null: no training decides."""
    repair: Repair = "none"
    """Fit layers at the cut to the reference by least squares, before any training. sequential: the
    MLP of the layer before the first gap and of each one behind it, in order, on what the target so
    far gives it; linear: a matrix on what the MLP of the layer before each gap writes (ReplaceMe);
    scale: the same with a factor for each channel."""
    repair_tokens: Amount = 32_768
    """Training tokens to fit on, those that the training reads last; an eighth of them is held out
    to choose the ridge."""

    @model_validator(mode="after")
    def _auto_has_what_it_compares(self) -> Self:
        for key in ("candidates", "tournament"):
            if getattr(self, key) is not None and self.select.partition(":")[0] != "auto":
                raise ValueError(f"{key} is for select: auto, and select is {self.select}")
        named = self.candidates or []
        if twice := next((name for name in named if named.count(name) > 1), ""):
            raise ValueError(f"candidates name {twice} twice")
        return self

    @property
    def tournament_stages(self) -> int:
        """Most stages of a tournament: each leaves the better half, the last leaves one."""
        return max(1, (len(self.candidates or DEFAULT_CANDIDATES) - 1).bit_length())

    @model_validator(mode="after")
    def _advice_is_about_first_layers(self) -> Self:
        if self.layers == "advice" and self.select != "first":
            raise ValueError(
                f"layers: advice is a number of first layers, and select is {self.select}"
            )
        return self
