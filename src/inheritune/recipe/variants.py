"""How the target grows, and what is trained beside it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inheritune.recipe.values import (
    Amount,
    AmountOrZero,
    Multiple,
    Rate,
    Section,
    Seeds,
    Share,
)

__all__ = ["Distill", "Grow", "Parts", "Variant"]

Start = Literal["inherit", "fresh", "stacking", "hybrid-stacking", "half-width", "grown"]
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


class Grow(Section):
    """When a round has not matched the benchmark."""

    add: Annotated[int, Field(ge=0)] = Field(2, description="layers per round; 0: never grow")
    weights: Literal["reinherit", "keep"] = Field(
        "reinherit",
        description="what a round starts with: the reference's layers again, or the trained ones",
    )
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="nats above the benchmark that still count as matched"
    )
    max_layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="null: all layers of the reference"
    )
    max_rounds: Annotated[int, Field(ge=1)] | None = Field(None, description="null: no limit")
    benchmark: str | None = Field(
        None,
        description="benchmark.json of another run, of the same reference, tokenizer and "
        "validation set; null: measure it",
    )
    search: Literal["linear", "bisect"] = Field(
        "linear",
        description="linear: add layers until a round matches; bisect: halve the range of safe cut "
        "points up to max_layers, whatever add is (0: never grow), which finds the fewest layers "
        "that match if more never do worse",
    )
    abandon: Literal["never", "auto"] = Field(
        "never",
        description="auto: end a round early when its fitted loss curve says that it cannot reach "
        "the benchmark; never the last that there can be",
    )
    audit: bool = Field(
        False, description="true: train abandoned rounds to their end, to check the decision"
    )

    @model_validator(mode="after")
    def _bisects_from_the_reference(self) -> Self:
        if self.search == "bisect" and self.weights == "keep":
            raise ValueError(
                "search: bisect goes down in size as well as up, and trained layers cannot be "
                "taken away again: it needs weights: reinherit"
            )
        return self


class Distill(Section):
    """Learn from the reference's distributions too: alpha CE + (1 - alpha) temperature^2 KL."""

    alpha: Share = Field(0.6, description="share of the cross-entropy; the rest is the KL's")
    temperature: Rate = Field(1.0, description="both models' logits are divided by it in the KL")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="keep the reference's so many likeliest ids of each token on disk, and run it "
        "once; all others count as one outcome. null: it runs beside the training, whole",
    )


class Variant(Section):
    """One trained arm of a run."""

    start: Start = Field(
        description="inherit: layers of the reference, and without select and parts it is the "
        "target, which grows; fresh: random weights; stacking: half of the layers trained from "
        "fresh, then twice; hybrid-stacking: the reference's first layers twice; half-width: all "
        "layers of the reference, half as wide; grown: the target's first round, trained on at "
        "each of its later sizes with its layers kept"
    )
    select: str | None = Field(
        None,
        description="which layers of the reference a control inherits: first, last, middle, "
        'first+last, strided, lazy (lowest attention rank), or a list such as "0-3,7"; null: the '
        "first",
    )
    parts: Parts = Field(
        "all", description="what a control inherits of its layers and of what is around them"
    )
    layers: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None, description="of a control; null: as many as the target ends with"
    )
    tokens: Amount | Multiple | Literal["equal_compute"] | None = Field(
        None,
        description="null: train.tokens; 2x: twice as many; equal_compute: as many FLOPs as the "
        "target's rounds took together, and the reference's training too if it was trained here",
    )
    seeds: Seeds | None = Field(None, description="of its trainings; null: the recipe's seeds")
    lr_scale: Rate = Field(1.0, description="the peak is train.learning_rate times this")
    warmup_tokens: AmountOrZero | None = Field(None, description="null: train.warmup_tokens")
    distill: Distill | None = Field(
        None, description="null: learn from the text alone; {}: from the reference as well"
    )

    @model_validator(mode="after")
    def _has_its_own_keys_only(self) -> Self:
        if self.start != "inherit" and (self.select is not None or self.parts != "all"):
            key = "select" if self.select is not None else "parts"
            raise ValueError(f"{key} says what is inherited; it goes with start: inherit")
        if self.start == "half-width" and self.layers not in (None, "all"):
            raise ValueError("half-width has all layers of the reference")
        if self.start == "grown" and self.layers is not None:
            raise ValueError("grown has the sizes of the target's later rounds")
        if self.tokens == "equal_compute" and self.start != "fresh":
            raise ValueError("equal_compute is for controls that start with fresh weights")
        return self

    @property
    def is_target(self) -> bool:
        """Whether it inherits the first layers whole, and grows."""
        return self.start == "inherit" and self.select is None and self.parts == "all"
