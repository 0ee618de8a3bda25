"""Define the recipe: one section per step, in the order in which a run carries them out."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from inheritune.recipe.data import Data
from inheritune.recipe.inherit import Inherit
from inheritune.recipe.published import check_experiment
from inheritune.recipe.training import Train
from inheritune.recipe.values import (
    Amount,
    Count,
    CountOrZero,
    Name,
    NonNegative,
    RecipeSection,
    Seeds,
    name_of_model,
    writable,
)
from inheritune.recipe.variants import AlphaSchedule, Grow, Variant

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class ReferenceTraining(RecipeSection):
    """Train a reference from scratch instead of downloading one."""

    config: Annotated[dict[str, JsonValue], AfterValidator(writable)]
    """The reference's config.json: model_type, layers, widths."""
    tokenizer: str | None = None
    """Model directory whose tokenizer to use; null: train one on the text."""
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 2048
    """Vocabulary size of the byte-level BPE tokenizer, if one is trained."""
    tokens: Amount
    """Tokens to train the reference on."""
    keep_in: str | None = None
    """Directory that shares trained references between recipes: a reference that was trained before
    with the same settings is reused; null: keep it in the run."""

    @model_validator(mode="after")
    def _names_a_model_type(self) -> Self:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as llama or gpt2")
        return self


class ReferenceSection(RecipeSection):
    """The large model whose layers are inherited."""

    model: str | None = None
    """Hub id, local model directory or embedded:demo; safetensors only."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    text_only: bool = False
    """Take only the language model out of a model that also reads images; it is kept in the run."""
    train: ReferenceTraining | None = None
    """Train a reference instead of loading one."""

    @model_validator(mode="after")
    def _is_given_once(self) -> Self:
        if (self.model is None) == (self.train is None):
            raise ValueError("give either model (a trained reference) or train (one to train here)")
        if self.text_only and self.model is None:
            raise ValueError("text_only goes with model: a reference trained here reads text only")
        return self


class Evaluate(RecipeSection):
    """Measurement of val_loss, and tasks to test the models on."""

    batch_size: Count = 16
    """Windows or requests per forward pass. Fixed, because scores change slightly with it."""
    gains: bool = True
    """Measure size, speed and fidelity of reference and target at the end of the run."""
    tasks: list[str] = Field([])
    """lm-eval tasks, by name or by the suites low-data, full-data, later; needs the extra eval."""
    num_fewshot: CountOrZero | None = None
    """Examples before each question; null: the suite's or task's own number."""
    limit: Count | None = None
    """Questions per task; null: all. A limit is noted beside the scores."""
    add_bos: Literal["auto", "yes", "no"] = "auto"
    """Begin every text with BOS; auto: as in training."""
    task_data: str | None = None
    """Directory of <task>.jsonl files to read instead of the Hub's datasets."""
    allow_task_code: bool = False
    """true: allow tasks to run their own code."""
    at: list[Amount] = Field([])
    """Training tokens after which to run the tasks, in addition to the end of each training."""


class Analyze(RecipeSection):
    """Text and threshold of the analysis of attention."""

    sequences: Count = 100
    """Validation sequences to analyse."""
    tokens_per_sequence: Annotated[int, Field(ge=2)] = 100
    """Tokens of each sequence to analyse."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the squared singular values that an attention rank must reach."""


class Target(RecipeSection):
    """How trained models are published."""

    dtype: Literal["reference", "bf16", "fp16", "fp32"] = "reference"
    """Dtype of the weights of every published model; reference: that of the reference. Checkpoints
    hold fp32 weights, and val_loss is that of the published ones."""


class Cost(RecipeSection):
    """Price of the machine, for the ledger of costs."""

    price_per_hour: NonNegative | None = None
    """Price of the training machine for an hour; null: show no price."""
    currency: Annotated[str, Field(min_length=1, max_length=10)] = "USD"
    """Currency of price_per_hour."""


class Report(RecipeSection):
    """Samples in the report, and trackers to send metrics to."""

    prompts: list[str] = Field([])
    """Prompts that every model continues."""
    sample_tokens: Count = 48
    """Tokens of each continuation."""
    trackers: list[Tracker] = Field([])
    """Send metrics to these while training: tensorboard, wandb, trackio, mlflow."""


class Recipe(RecipeSection):
    """A run: reference, text, training, growth, variants, evaluation and report."""

    name: Name = Field(default_factory=str)  # never empty: `_has_a_name` gives one
    """Name of the run and of its directory under runs/; by default that of the recipe's file, or
    of the reference's model where there is no file."""
    reproduces: Annotated[str, AfterValidator(check_experiment)] | None = None
    """Published experiment to compare the settings with, such as gpt2-medium-openwebtext; the
    report lists the differences."""
    reference: ReferenceSection
    inherit: Inherit = Inherit()
    data: Data
    train: Train
    grow: Grow = Grow()
    target: Target = Target()
    variants: dict[Name, Variant] = Field(
        {"inherit": Variant(start="inherit"), "scratch": Variant(start="fresh")}
    )
    seeds: Seeds | None = None
    """Train every variant once with each seed; the first one decides about growth. null: train.seed
    only. A reference that is trained here always has train.seed."""
    evaluate: Evaluate = Evaluate()
    analyze: Analyze | None = Analyze()
    """null: skip the analysis."""
    cost: Cost = Cost()
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "name" in values:
            return values
        reference = values.get("reference")
        model = reference.get("model") if isinstance(reference, dict) else None
        return values | {"name": name_of_model(model if isinstance(model, str) else "")}

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        targets = [name for name, variant in self.variants.items() if variant.is_target]
        if len(targets) != 1:
            names = ", ".join(targets) or "none"
            raise ValueError(
                f"exactly one variant, the target, starts with inherit; here: {names}. A control "
                "that inherits needs select, such as select: first"
            )
        if self.variants[targets[0]].layers is not None:
            raise ValueError("the target's number of layers belongs in inherit.layers")
        if self.variants[targets[0]].repair != "none":
            raise ValueError("the target's repair belongs in inherit.repair")
        return self

    @model_validator(mode="after")
    def _grows_from_the_reference_where_repaired(self) -> Self:
        starts = [variant.start for variant in self.variants.values()]
        keeps = self.grow.weights == "keep" and self.grow.add
        if self.inherit.repair != "none" and (keeps or "grown" in starts):
            raise ValueError(
                f"inherit.repair: {self.inherit.repair} lets a target do without the layers above "
                "it, so none can be put on top of it: use grow.weights: reinherit, and no variant "
                "that starts grown"
            )
        return self

    @model_validator(mode="after")
    def _repairs_have_two_windows(self) -> Self:
        repairs = {self.inherit.repair, *(variant.repair for variant in self.variants.values())}
        tokens, seq_len, text = self.inherit.repair_tokens, self.train.seq_len, self.data.tokens
        if repairs == {"none"}:
            return self
        if tokens < 2 * seq_len:
            raise ValueError(
                f"inherit.repair_tokens is {tokens}, but a repair needs two windows of "
                f"train.seq_len tokens: {2 * seq_len}"
            )
        if text is not None and tokens // seq_len > (text - 1) // seq_len:
            raise ValueError(
                f"inherit.repair_tokens is {tokens}, but data.tokens {text} has "
                f"{(text - 1) // seq_len} whole windows of {seq_len} tokens: lower the first, or "
                "raise the second"
            )
        return self

    @model_validator(mode="after")
    def _tournament_begins_with_a_step(self) -> Self:
        tournament, least = self.inherit.tournament, self.train.batch_tokens
        if tournament is None:
            return self
        stages = self.inherit.tournament_stages
        if tournament.tokens >> (stages - 1) < least:
            raise ValueError(
                f"inherit.tournament.tokens is {tournament.tokens}, of which the first of {stages} "
                f"stages has less than a step of train.batch_tokens {least}: give "
                f"{least << (stages - 1)} or more"
            )
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
    def _alphas_have_a_rate_to_follow(self) -> Self:
        for name, variant in self.variants.items():
            alpha = None if variant.distill is None else variant.distill.alpha
            if isinstance(alpha, AlphaSchedule) and self.train.schedule == "constant":
                raise ValueError(
                    f"variants.{name}.distill.alpha follows the learning rate, which "
                    "train.schedule constant never lowers: give a number, such as alpha: "
                    f"{alpha.peak:g}"
                )
        return self

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        first, last = self.inherit.layers, self.grow.max_layers
        if isinstance(first, int) and last is not None and last < first:
            raise ValueError(f"grow.max_layers {last} is below inherit.layers {first}")
        return self

    @model_validator(mode="after")
    def _has_tasks_to_match(self) -> Self:
        tasks = [name for name in self.evaluate.tasks if name != "val_loss"]
        limit = self.grow.match.tasks
        if limit is not None and not tasks:
            raise ValueError(
                f"grow.match.tasks is {limit:g}, but no task is asked: name some in "
                "evaluate.tasks, such as [arc_easy, piqa]"
            )
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
    def target_name(self) -> str:
        """Name of the variant that inherits whole layers and grows."""
        return next(name for name, variant in self.variants.items() if variant.is_target)

    def seeds_of(self, name: str) -> list[int]:
        """List the seeds of a variant's trainings; the first one decides about growth."""
        return self.variants[name].seeds or self.seeds or [self.train.seed]

    def tokens_of(self, name: str) -> int | None:
        """Count the tokens of each training of a variant.

        None for ``equal_compute``, which depends on the rounds that a run turns out to need.
        """
        tokens = self.variants[name].tokens
        if isinstance(tokens, int):
            return tokens
        if tokens == "equal_compute":
            return None
        return self.train.tokens * (1 if tokens is None else int(tokens.removesuffix("x")))

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as JSON values, with every default written out."""
        return self.model_dump(mode="json")
