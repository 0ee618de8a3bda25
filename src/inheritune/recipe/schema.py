"""Every knob of a run, one frozen section per step, in the order the run takes them."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from inheritune.recipe.published import check_experiment
from inheritune.recipe.values import (
    Amount,
    AmountOrZero,
    Name,
    Rate,
    Section,
    Seed,
    Seeds,
    Share,
    Switch,
    writable,
)
from inheritune.recipe.variants import Grow, Variant

__all__ = [
    "Analyze",
    "Cost",
    "Data",
    "Evaluate",
    "Inherit",
    "Recipe",
    "Reference",
    "ReferenceTraining",
    "Report",
    "TextSource",
    "Train",
]

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class ReferenceTraining(Section):
    """Train the reference here, when there is none to download."""

    config: Annotated[dict[str, JsonValue], AfterValidator(writable)] = Field(
        description="config.json of the reference: model_type, layers, widths"
    )
    tokenizer: str | None = Field(
        None, description="model directory whose tokenizer is used; null: train one on the text"
    )
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = Field(
        2048, description="entries of the byte-level BPE tokenizer, when one is trained"
    )
    tokens: Amount = Field(description="tokens the reference is trained on")
    keep_in: str | None = Field(
        None,
        description="directory that keeps the trained reference for other recipes, and from which "
        "it is taken where the same was trained before; null: the run's own",
    )

    @model_validator(mode="after")
    def _names_a_model_type(self) -> Self:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as llama or gpt2")
        return self


class Reference(Section):
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


class Inherit(Section):
    """What the first round keeps."""

    layers: Annotated[int, Field(ge=1)] | Literal["advice"] | None = Field(
        None,
        description="the first n layers of the reference; null: half of them; advice: as many as "
        "the analysis of its attention advises",
    )


class TextSource(Section):
    """One of several sources, and its share of the training tokens."""

    source: str | list[str] = Field(description="as data.source, when it is one")
    weight: Rate = Field(1.0, description="share of the training tokens, relative to the others")
    config: str | None = Field(None, description="of a Hub dataset")
    split: str | None = Field(None, description="of a Hub dataset; null: train")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    text_column: str | None = Field(None, description="null: as data.text_column")


class Data(Section):
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
    val_sample: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the documents of val_source to take, by hash; null: all"
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


class Train(Section):
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
    seed: Seed = Field(0, description="data order and fresh weights")
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
        None,
        description="tokens between validations, before the one at the end; null: a tenth of each "
        "training",
    )
    save_minutes: Rate = Field(20.0, description="between checkpoints")
    keep: Annotated[int, Field(ge=1)] = Field(2, description="checkpoints kept")

    def num_steps(self, tokens: int) -> int:
        """Optimizer steps for a number of training tokens: whole batches, at least one."""
        return max(1, tokens // self.batch_tokens)

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


class Evaluate(Section):
    """How val_loss is measured, and which tasks the models are asked."""

    batch_size: Annotated[int, Field(ge=1)] = Field(
        16, description="windows or requests per forward; scores move with it, so it is fixed"
    )
    tasks: list[str] = Field(
        [],
        description="of lm-eval: names, or the suites low-data, full-data, later; needs the extra "
        "eval",
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="examples before each question; null: as the suite or task says"
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="questions of each task; null: all, and anything less is said"
    )
    add_bos: Literal["auto", "yes", "no"] = Field(
        "auto", description="begin every text with BOS; auto: as the tokenizer does"
    )
    task_data: str | None = Field(
        None, description="directory of <task>.jsonl files to read instead of the Hub's data sets"
    )
    allow_task_code: bool = Field(False, description="true: tasks may run code of their own")
    at: list[Amount] = Field(
        [], description="tokens of a training after which the tasks are asked too, besides its end"
    )


class Analyze(Section):
    """What is looked at to say why layers can go."""

    sequences: Annotated[int, Field(ge=1)] = Field(100, description="of the validation set")
    tokens_per_sequence: Annotated[int, Field(ge=2)] = Field(100, description="of each")
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="share of the squared singular values that a rank accounts for"
    )


class Cost(Section):
    """What a machine costs, if the ledger is to say so."""

    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="of the machine that trains; null: no price is shown"
    )
    currency: Annotated[str, Field(min_length=1, max_length=10)] = Field(
        "USD", description="of the price"
    )


class Report(Section):
    """What is shown besides the report's figures, and where else."""

    prompts: list[str] = Field([], description="beginnings that every model continues")
    sample_tokens: Annotated[int, Field(ge=1)] = Field(48, description="length of a sample")
    trackers: list[Tracker] = Field(
        [], description="tensorboard, wandb, trackio, mlflow: also shown there while it trains"
    )


class Recipe(Section):
    """A whole run, described."""

    name: Name = Field(description="the run's directory under runs/")
    reproduces: Annotated[str, AfterValidator(check_experiment)] | None = Field(
        None,
        description="published experiment whose settings this recipe's are compared with, such as "
        "gpt2-medium-openwebtext",
    )
    reference: Reference
    inherit: Inherit = Inherit()
    data: Data
    train: Train
    grow: Grow = Grow()
    variants: dict[Name, Variant] = Field(
        {"inherit": Variant(start="inherit"), "scratch": Variant(start="fresh")}
    )
    seeds: Seeds | None = Field(
        None,
        description="each variant is trained once with each, and growth is decided by the first; "
        "null: with train.seed alone, which a reference that is trained here always has",
    )
    evaluate: Evaluate = Evaluate()
    analyze: Analyze | None = Field(Analyze(), description="null: do not analyze")
    cost: Cost = Cost()
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
        if isinstance(first, int) and last is not None and last < first:
            raise ValueError(f"grow.max_layers {last} is below inherit.layers {first}")
        return self

    @model_validator(mode="after")
    def _has_a_control_for_growth(self) -> Self:
        grown = [name for name, variant in self.variants.items() if variant.start == "grown"]
        if grown and self.grow.weights == "keep":
            raise ValueError(
                f"variants.{grown[0]} starts grown: with grow.weights keep that is the target "
                "itself"
            )
        return self

    @property
    def target(self) -> str:
        """Name of the variant that inherits and grows."""
        return next(name for name, variant in self.variants.items() if variant.is_target)

    def seeds_of(self, name: str) -> list[int]:
        """Seeds of a variant's trainings; everything is decided by the first."""
        return self.variants[name].seeds or self.seeds or [self.train.seed]

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
