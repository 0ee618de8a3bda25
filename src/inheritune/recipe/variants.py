"""Define the recipe sections on growth, control variants and distillation."""

from typing import Any, Literal, Self

from pydantic import model_validator

from inheritune.recipe.values import (
    Amount,
    AmountOrZero,
    Count,
    CountOrZero,
    Multiple,
    NonNegative,
    Only,
    Rate,
    RecipeSection,
    Seeds,
    Share,
)

# Keys of older versions, with the values that switched them off; recipes written by these versions
# spell them out. Any other value is refused, see `messages.REMOVED_KEYS`.
_SWITCHED_OFF = {"abandon": "never", "audit": False, "benchmark": None}

Repair = Literal["none", "sequential", "linear", "scale"]
StartName = Literal["inherit", "fresh", "stacking", "hybrid-stacking", "half-width", "grown"]
Parts = Literal[
    "all",
    "attention",
    "mlp",
    "attention+mlp",
    "first-half",
    "layers-only",
    "outer-only",
    "paper-code-gpt2",
    "paper-code-llama",
]


class Match(RecipeSection):
    """Criteria that a target must meet, each of them, to match its reference."""

    val_loss: NonNegative | None = 0.0
    """Most nats above the reference loss; null: any val_loss. 0 is the papers' criterion."""
    kl: NonNegative | None = None
    """Largest KL divergence from the reference's predictions, nats per validation token; null:
    any."""
    top1: Share | None = None
    """Smallest share of validation tokens at which both think the same token the likeliest; null:
    any."""
    tasks: Share | None = None
    """Most that the mean score over evaluate.tasks may lie below the reference's: 0.01 is one
    point of a hundred; null: any."""

    @model_validator(mode="after")
    def _has_a_criterion(self) -> Self:
        if all(limit is None for limit in (self.val_loss, self.kl, self.top1, self.tasks)):
            raise ValueError("all criteria are null, so any target matches: give one, such as kl")
        return self


class Grow(RecipeSection):
    """Growth of the target while it does not match the reference loss."""

    add: CountOrZero = 2
    """Layers to add per round; 0: never grow."""
    weights: Literal["reinherit", "keep"] = "reinherit"
    """What a round starts from: reinherit: the reference's layers again; keep: the layers trained
    in the round before."""
    match: Match = Match()
    """What a target must keep to in order to match; all of it counts."""
    patch: bool = False
    """After each round, measure the larger sizes that need no training: layers of the reference
    put back, untrained. Where one up to the size of the next round matches, it is the target, and
    that round is not trained."""
    max_layers: Count | None = None
    """Most layers to grow to; null: all layers of the reference."""
    max_rounds: Count | None = None
    """Most rounds; null: no limit."""
    search: Literal["linear", "bisect"] = "linear"
    """linear: add layers until a round matches; bisect: halve the range of safe cut points up to
    max_layers, which finds the fewest layers that match, provided that more layers never do worse.
    With bisect, add only decides whether to grow at all (0: never)."""

    @model_validator(mode="before")
    @classmethod
    def _drop_removed_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        off = _SWITCHED_OFF
        kept = {key: value for key, value in values.items() if key not in off or value != off[key]}
        return _with_match(kept) if "tolerance" in kept else kept

    @model_validator(mode="after")
    def _bisects_from_the_reference(self) -> Self:
        if self.search == "bisect" and self.weights == "keep":
            raise ValueError(
                "search: bisect also tries smaller sizes, and trained layers cannot be taken away "
                "again: it needs weights: reinherit"
            )
        return self


def _with_match(values: dict[str, Any]) -> dict[str, Any]:
    """Move ``tolerance``, as earlier versions called it, to ``match.val_loss``."""
    match = values.get("match", {})
    if not isinstance(match, dict) or "val_loss" in match:
        raise ValueError("tolerance is the older name of match.val_loss: give one of them")
    rest = {key: value for key, value in values.items() if key != "tolerance"}
    return rest | {"match": match | {"val_loss": values["tolerance"]}}


class AlphaSchedule(RecipeSection):
    """A weight of the cross-entropy that follows the learning rate.

    alpha = h peak + (1 - h) end, where h falls from 1 to 0 as the learning rate falls from its peak
    to its minimum (`training.optimizer.schedule_height`); in the warmup h is 1.

    Source: Peng et al., arXiv 2410.16215: the KL while the rate is high, the text while it falls.
    """

    peak: Share
    """alpha while the learning rate is at its peak, and in the warmup."""
    end: Share
    """alpha when the learning rate has reached its minimum."""

    def at(self, height: float) -> float:
        """Return alpha where the learning rate stands so high between minimum and peak."""
        return height * self.peak + (1 - height) * self.end


class Hidden(RecipeSection):
    """Add weight x the distance of hidden states, per token and summed over the target's layers."""

    loss: Literal["cosine", "nmse"] = "cosine"
    """Distance of a, after a layer of the target, from b, in the reference where the target's next
    layer is taken from (after its last layer for the last): cosine: 1 - cos(a, b); nmse:
    |a - b|^2 / |b|^2."""
    weight: Rate = 2.0
    """Factor on the distance."""


class Distill(RecipeSection):
    """Distil from the reference: the loss is alpha CE + (1 - alpha) temperature^2 KL."""

    alpha: Share | AlphaSchedule = 0.6
    """Weight of the cross-entropy; 1 - alpha is that of the KL. 0: the KL alone; {peak: 0.1, end:
    1.0}: 0.1 while the learning rate is at its peak, and 1.0 at its end, in between in step with
    the rate."""
    temperature: Rate = 1.0
    """Divisor of both models' logits in the KL; with top_k, only within the k ids."""
    top_k: Count | None = None
    """Run the reference once and store its k most likely ids for each token; all other ids count as
    one outcome. null: run the reference beside the training, with its full distribution."""
    hidden: Hidden | None = None
    """Also compare hidden states ({}: the defaults). Needs start: inherit or grown, and the
    reference beside the training; null: compare predictions alone."""

    @model_validator(mode="after")
    def _stores_no_hidden_states(self) -> Self:
        if self.hidden is not None and self.top_k is not None:
            raise ValueError(
                "hidden needs the reference beside the training, and top_k stores its predictions "
                "alone: leave top_k or hidden out"
            )
        return self


class Variant(RecipeSection):
    """One way of training in a run: initial weights, size and length."""

    start: StartName
    """Initial weights. inherit: layers of the reference; without select and parts, this variant is
    the target, which grows. fresh: random weights. stacking: half of the layers, trained from fresh
    weights, then stacked twice. hybrid-stacking: the reference's first layers, stacked twice.
    half-width: all layers of the reference, at half of its width. grown: the target's first round,
    trained on at each of its later sizes with its trained layers kept."""
    # The description holds surgery.selection.FORMS; a test compares the two.
    select: str | None = None
    """Layers that a control inherits: 13 or first:13 (the first 13), last:13, middle:13,
    first+last:10+3 (first 10, last 3; first+last:13 is 12+1), strided:13 (evenly spread), every:2
    (0, 2, 4, ...), boomerang:2 (0, 2, 4, ... and the last two), block:13 (all but the cheapest
    block), greedy:13 (the cheapest removed one by one), influence:13 (highest block influence),
    angular:13 (all but the block of the smallest angle), norm-ratio:13 (highest ratio of norms),
    auto:13 (the cheapest of these), lazy:13 (lowest attention rank; in recipes only), or a list
    such as 0-11,24,25. The number may stand in layers instead; null: first."""
    parts: Parts = "all"
    """Parts that a control inherits of its layers and of what is around them."""
    repair: Repair = "none"
    """Repair of a control that inherits, as inherit.repair, on as many tokens."""
    layers: Count | Literal["all"] | None = None
    """Number of layers of a control; null: the target's final number."""
    tokens: Amount | Multiple | Literal["equal_compute"] | None = None
    """Training tokens. null: train.tokens; 2x: twice as many; equal_compute: as many FLOPs as all
    rounds of the target, plus the reference's training if it was trained here."""
    seeds: Seeds | None = None
    """Seeds to train this variant with; null: seeds."""
    lr_scale: Rate = 1.0
    """Factor on train.learning_rate."""
    warmup_tokens: AmountOrZero | None = None
    """Warmup of this variant; null: train.warmup_tokens."""
    only: Only | None = None
    """Weights to train in this variant; null: train.only."""
    distill: Distill | None = None
    """Distil from the reference, with these settings ({}: the defaults); null: learn from the text
    alone."""

    @model_validator(mode="after")
    def _has_its_own_keys_only(self) -> Self:
        if self.start != "inherit" and (self.select is not None or self.parts != "all"):
            key = "select" if self.select is not None else "parts"
            raise ValueError(f"{key} chooses what to inherit; it needs start: inherit")
        if self.repair != "none" and (self.start != "inherit" or self.parts != "all"):
            raise ValueError(
                f"repair: {self.repair} fits whole inherited layers; it needs start: inherit and "
                "parts: all"
            )
        if self.start == "half-width" and self.layers not in (None, "all"):
            raise ValueError("half-width always has all layers of the reference")
        if self.start == "grown" and self.layers is not None:
            raise ValueError("grown always has the sizes of the target's later rounds")
        if self.only is not None and self.starts_fresh:
            raise ValueError(
                f"only would leave fresh weights untrained: with start {self.start} leave it out"
            )
        is_hidden = self.distill is not None and self.distill.hidden is not None
        if is_hidden and self.start not in ("inherit", "grown"):
            raise ValueError(
                f"distill.hidden compares layers with those that they were inherited from, and "
                f"{self.start} has none of the same width and place: leave hidden out"
            )
        if self.tokens == "equal_compute" and self.start != "fresh":
            raise ValueError("equal_compute is for controls that start with fresh weights")
        return self

    @property
    def starts_fresh(self) -> bool:
        """Whether no weight comes from a trained model."""
        return self.start in ("fresh", "stacking")

    @property
    def is_target(self) -> bool:
        """Whether this variant is the target, which inherits whole first layers and grows."""
        return self.start == "inherit" and self.select is None and self.parts == "all"
