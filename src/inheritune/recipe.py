"""Every knob of a run, one frozen section per step, in the order the run takes them."""

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    model_validator,
)

__all__ = [
    "Data",
    "Distill",
    "Evaluate",
    "Grow",
    "Inherit",
    "Recipe",
    "Reference",
    "ReferenceTraining",
    "Report",
    "TextSource",
    "Train",
    "Variant",
    "parse_amount",
]

_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9}
_AMOUNT = r"^[0-9]+(\.[0-9]+)?[KMBkmb]$"
_MOST = 10**18  # of tokens, and of seeds; fits 64 bits


def parse_amount(value: object) -> object:
    """Read a token amount: an integer, or a number followed by K, M or B (10^3, 10^6, 10^9).

    Args:
        value: What the recipe holds, such as ``2_000_000`` or ``"2M"`` or ``"1.5B"``.

    Returns:
        The amount as an integer; anything that is not such a text is returned as it is, so that
        the type check that follows names it.
    """
    if not isinstance(value, str) or len(value) > 40 or not re.fullmatch(_AMOUNT, value):
        return value
    # Decimal: 2.01 * 10**6 is not a whole number in binary floating point.
    amount = Decimal(value[:-1]) * _MULTIPLES[value[-1].upper()]
    return int(amount) if amount == amount.to_integral_value() else value


def _plain_name(value: str) -> str:
    # The name becomes a directory, on every system.
    if not all(c.isalnum() or c in "-_." for c in value):
        raise ValueError("use letters, digits, '-', '_' and '.' only")
    if re.match(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", value) or value.endswith("."):
        raise ValueError("no file system takes this name everywhere; choose another")
    if len(value.encode()) > 200:
        raise ValueError("use at most 200 bytes")
    return value


def _writable(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("every number in it must be finite, as JSON has no other") from None
    return value


def _amount_schema(least: int) -> WithJsonSchema:
    integer = {"type": "integer", "minimum": least, "maximum": _MOST}
    return WithJsonSchema({"anyOf": [integer, {"type": "string", "pattern": _AMOUNT}]})


Amount = Annotated[
    int, Field(ge=1, le=_MOST), BeforeValidator(parse_amount), _amount_schema(least=1)
]
AmountOrZero = Annotated[
    int, Field(ge=0, le=_MOST), BeforeValidator(parse_amount), _amount_schema(least=0)
]
Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain_name)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Switch = Literal["auto", "on", "off"]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Multiple = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}x$")]
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ReferenceTraining(_Section):
    """Train the reference here, when there is none to download."""

    config: Annotated[dict[str, JsonValue], AfterValidator(_writable)] = Field(
        description="config.json of the reference: model_type, layers, widths"
    )
    tokenizer: str | None = Field(
        None, description="model directory whose tokenizer is used; null: train one on the text"
    )
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = Field(
        2048, description="entries of the byte-level BPE tokenizer, when one is trained"
    )
    tokens: Amount = Field(description="tokens the reference is trained on")

    @model_validator(mode="after")
    def _names_a_model_type(self) -> Self:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as llama or gpt2")
        return self


class Reference(_Section):
    """The large model that layers are inherited from."""

    model: str | None = Field(
        None, description="Hub id, local model directory, or embedded:demo; safetensors only"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    train: ReferenceTraining | None = Field(None, description="train a reference instead")

    @model_validator(mode="after")
    def _is_given_once(self) -> Self:
        if (self.model is None) == (self.train is None):
            raise ValueError("give either model (a trained reference) or train (its config)")
        return self


class Inherit(_Section):
    """What the first round keeps."""

    layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="the first n layers of the reference; null: half of them"
    )


class TextSource(_Section):
    """One of several sources, and its share of the training tokens."""

    source: str | list[str] = Field(description="as data.source, when it is one")
    weight: Rate = Field(1.0, description="share of the training tokens, relative to the others")
    config: str | None = Field(None, description="of a Hub dataset")
    split: str | None = Field(None, description="of a Hub dataset; null: train")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    text_column: str | None = Field(None, description="null: as data.text_column")


class Data(_Section):
    """Text to train and to validate on."""

    source: str | list[str] | list[TextSource] = Field(
        description="stdlib (Python's standard library), stdlib+tests, a Hub dataset, or local "
        "files, globs or folders: text, .jsonl, .jsonl.gz, .jsonl.zst, .parquet; or a list of "
        "mappings {source, weight}"
    )
    config: str | None = Field(None, description="of a Hub dataset, such as sample-10BT")
    split: str | None = Field(None, description="of a Hub dataset; null: train")
    revision: str | None = Field(
        None, description="branch, tag or commit of a Hub dataset; null: the newest, recorded"
    )
    text_column: str = Field("text", description="field of a row that holds the text")
    sample: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the documents to take, by hash: 0.001 lies within 0.01"
    )
    val_source: str | list[str] | list[TextSource] | None = Field(
        None, description="a validation set of your own; null: hold documents out"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.002, description="share of documents held out, chosen by hash"
    )
    split_by: Literal["text", "name"] = Field(
        "text", description="hash of a document's text, or of its name (path or file:line)"
    )
    tokens: Amount | None = Field(
        None, description="stop preparing after this many training tokens; null: all there are"
    )
    special_tokens_in_text: bool = Field(
        False, description="true: a literal <|endoftext|> in the text becomes the special token"
    )
    allow_repeat: bool = Field(False, description="true: train for more than one epoch")
    max_bad_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="unreadable rows or files to skip before giving up"
    )

    @model_validator(mode="after")
    def _settings_of_datasets_have_one_place(self) -> Self:
        several = any(isinstance(part, TextSource) for part in self.source)
        given = [key for key in ("config", "split", "revision") if getattr(self, key) is not None]
        if several and given:
            raise ValueError(f"with several sources, {given[0]} belongs to each entry of source")
        return self


class Train(_Section):
    """One training: how long, on what batches, with which optimizer, at what speed."""

    tokens: Amount = Field(description="training tokens of each round and variant")
    seq_len: Annotated[int, Field(ge=8)] = Field(1024, description="tokens per sequence")
    batch_tokens: Amount = Field(393_216, description="tokens per optimizer step")
    micro_batch: Annotated[int, Field(ge=1)] = Field(8, description="sequences per forward")
    learning_rate: Rate = Field(3e-4, description="peak")
    min_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1e-5, description="where cosine and wsd end"
    )
    warmup_tokens: AmountOrZero = Field(
        0, description="tokens over which the learning rate rises from 0"
    )
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="a function of tokens, started afresh in every round"
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.1, description="decoupled, on matrices only"
    )
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.95], description="AdamW's moment decays"
    )
    clip_norm: Rate = Field(1.0, description="global gradient norm")
    dropout: Share = Field(0.0, description="0 even where the reference's config has more")
    seed: Annotated[int, Field(ge=0, le=_MOST)] = Field(
        0, description="data order and fresh weights"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of the computation; master weights are always fp32"
    )
    attention: Literal["auto", "matmul", "model"] = Field(
        "auto", description="matmul: batched matrix products, faster on CPU for short sequences"
    )
    compile: Switch = Field("auto", description="torch.compile; auto: where it pays back")
    fused_gelu: Switch = Field("auto", description="GPT-2's GELU in one kernel")
    fused_optimizer: Switch = Field("auto", description="AdamW in one kernel")
    keep_large_blocks: Switch = Field(
        "auto", description="glibc keeps freed memory instead of unmapping it at every step"
    )
    activation_checkpointing: Literal["on", "off"] = Field(
        "off", description="on: compute layers again in the backward pass; less memory, slower"
    )
    nonfinite: Literal["stop", "skip"] = Field("stop", description="on a NaN or Inf")
    max_skips: Annotated[int, Field(ge=0)] = Field(3, description="in a row, with skip")
    eval_every: Amount | None = Field(
        None, description="tokens between validations; null: ten in each training"
    )
    save_minutes: Rate = Field(20.0, description="between checkpoints")
    keep: Annotated[int, Field(ge=1)] = Field(2, description="checkpoints kept")

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        quantum = self.seq_len * self.micro_batch
        if self.batch_tokens % quantum:
            below = self.batch_tokens // quantum * quantum
            nearest = " or ".join(str(v) for v in (below, below + quantum) if v)
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of seq_len x micro_batch = "
                f"{quantum}; nearest: {nearest}"
            )
        return self

    @model_validator(mode="after")
    def _rates_fall(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above "
                f"learning_rate {self.learning_rate}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        return self


class Grow(_Section):
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


class Distill(_Section):
    """Learn from the reference's distributions too: alpha CE + (1 - alpha) temperature^2 KL."""

    alpha: Share = Field(0.6, description="share of the cross-entropy; the rest is the KL's")
    temperature: Rate = Field(1.0, description="both models' logits are divided by it in the KL")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="keep the reference's so many likeliest ids of each token on disk, and run it "
        "once; all others count as one outcome. null: it runs beside the training, whole",
    )


class Variant(_Section):
    """One trained arm of a run."""

    start: Literal["inherit", "fresh", "stacking", "hybrid-stacking", "half-width"] = Field(
        description="inherit: layers of the reference, and without select and parts it is the "
        "target, which grows; fresh: random weights; stacking: half of the layers trained from "
        "fresh, then twice; hybrid-stacking: the reference's first layers twice; half-width: all "
        "layers of the reference, half as wide"
    )
    select: str | None = Field(
        None,
        description="which layers of the reference a control inherits: first, last, middle, "
        'first+last, strided, or a list such as "0-3,7"; null: the first',
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
        if self.tokens == "equal_compute" and self.start != "fresh":
            raise ValueError("equal_compute is for controls that start with fresh weights")
        return self

    @property
    def is_target(self) -> bool:
        """Whether it inherits the first layers whole, and grows."""
        return self.start == "inherit" and self.select is None and self.parts == "all"


class Evaluate(_Section):
    """How val_loss is measured."""

    batch_size: Annotated[int, Field(ge=1)] = Field(16, description="windows per forward")


class Report(_Section):
    """What is shown besides the report's figures, and where else."""

    prompts: list[str] = Field([], description="beginnings that every model continues")
    sample_tokens: Annotated[int, Field(ge=1)] = Field(48, description="length of a sample")
    trackers: list[Tracker] = Field(
        [], description="tensorboard, wandb, trackio, mlflow: also shown there while it trains"
    )


class Recipe(_Section):
    """A whole run, described."""

    name: Name = Field(description="the run's directory under runs/")
    reference: Reference
    inherit: Inherit = Inherit()
    data: Data
    train: Train
    grow: Grow = Grow()
    variants: dict[Name, Variant] = {
        "inherit": Variant(start="inherit"),
        "scratch": Variant(start="fresh"),
    }
    evaluate: Evaluate = Evaluate()
    report: Report = Report()

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        targets = [name for name, variant in self.variants.items() if variant.is_target]
        if len(targets) != 1:
            found = ", ".join(targets) or "none"
            raise ValueError(
                f"exactly one variant, the target, starts with inherit; here: {found} (a control "
                "that inherits says what: select: first)"
            )
        if self.variants[targets[0]].layers is not None:
            raise ValueError("the target's layers stand under inherit.layers")
        return self

    @model_validator(mode="after")
    def _rates_of_variants_fall(self) -> Self:
        for name, variant in self.variants.items():
            peak, end = self.train.learning_rate * variant.lr_scale, self.train.min_learning_rate
            if peak < end:
                raise ValueError(
                    f"variants.{name}.lr_scale {variant.lr_scale} puts the peak at {peak:g}, below "
                    f"min_learning_rate {end:g}"
                )
        return self

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        first, last = self.inherit.layers, self.grow.max_layers
        if first is not None and last is not None and last < first:
            raise ValueError(f"grow.max_layers {last} is below inherit.layers {first}")
        return self

    @property
    def target(self) -> str:
        """Name of the variant that inherits and grows."""
        return next(name for name, variant in self.variants.items() if variant.is_target)

    def tokens_of(self, name: str) -> int | None:
        """Tokens of each training of a variant.

        Returns:
            None for equal compute: only a run knows how many those are.
        """
        wanted = self.variants[name].tokens
        if isinstance(wanted, int):
            return wanted
        if wanted == "equal_compute":
            return None
        return self.train.tokens * (1 if wanted is None else int(wanted.removesuffix("x")))

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, as JSON values."""
        return self.model_dump(mode="json")
