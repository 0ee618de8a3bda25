"""Define run.json: its fields, and the facts that follow from them.

Every field is optional, so that the record of an unfinished run, or of an older or newer version,
can be read. A value of the wrong kind counts as missing; unknown fields are kept.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from inheritune.errors import DataError, escape
from inheritune.system.reading import read_regular_file
from inheritune.system.strict_json import OWN_FILE

FORMAT = 1
# Value of `command`: the directory was made from a recipe, or by `train MODEL TOKENS OUT`.
RUN, TRAIN = "run", "train"

_TOO_LARGE = 1e100

T = TypeVar("T")


# --- kinds of values: whatever else stands in their place counts as missing ---


def finite_number(value: Any) -> int | float | None:
    """Return a number of which a product still fits into a float as it is, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _TOO_LARGE else None  # no comparison holds for NaN


def _text(value: Any) -> Any:
    if isinstance(value, dict):  # an error, written as a mapping
        value = " ".join(str(value[part]) for part in ("message", "hint") if value.get(part))
    return value if value is None else str(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict | BaseModel)


def _mapping(value: Any) -> Any:
    return value if _is_mapping(value) else {}


def _list_of(is_valid: Callable[[Any], bool]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: [item for item in value if is_valid(item)] if isinstance(value, list) else []
    )


Number = Annotated[int | float | None, BeforeValidator(finite_number)]
Text = Annotated[str | None, BeforeValidator(_text)]
Flag = Annotated[bool, BeforeValidator(lambda value: value is True)]
Values = Annotated[dict[str, Any], BeforeValidator(_mapping)]
Texts = Annotated[list[str], _list_of(lambda item: isinstance(item, str))]
Numbers = Annotated[list[int | float], _list_of(lambda item: finite_number(item) is not None)]
Rows = Annotated[list[T], _list_of(_is_mapping)]
Maybe = Annotated[T | None, BeforeValidator(lambda value: value if _is_mapping(value) else None)]


class _Part(BaseModel):
    """A section of run.json. It is false where nothing of it is recorded."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _nothing_unless_a_mapping(cls, value: Any) -> Any:
        return _mapping(value)

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)

    def as_json(self) -> dict[str, Any]:
        """The fields that are recorded, as JSON values; unknown ones included."""
        return self.model_dump(exclude_unset=True)


def _key(description: str) -> Any:
    return Field(default=None, description=description)


def _flag(description: str) -> Any:
    return Field(default=False, description=description)


def _list(description: str) -> Any:
    return Field(default_factory=list, description=description)


def _dict(description: str) -> Any:
    return Field(default_factory=dict, description=description)


def _part(kind: type[_Part], description: str) -> Any:
    return Field(default_factory=kind, description=description)


# --- the sections, in the order of the file ---


class StartRecord(_Part):
    """Versions and hardware of one start of the run."""

    versions: Values = _dict("versions of inheritune, Python and the libraries")
    machine: Values = _dict("processor, cores, memory, device and system")
    processes: Number = _key("processes that shared the work")


class CurvePoint(_Part):
    """One validation of the reference's own training."""

    tokens: Number = _key("training tokens up to then")
    val_loss: Number = _key("nats per token")


class ReferenceFacts(_Part):
    """The model that layers were inherited from."""

    model: Text = _key("its name in the recipe: a path, a Hub id or `embedded:demo`")
    layers: Number = _key("number of layers")
    params: Number = _key("parameters; tied weights count once")
    revision: Text = _key("commit of a Hub model")
    digest: Text = _key("XXH3 digest of its weights and config")
    trained_tokens: Number = _key("tokens of its own training, repeats counted")
    trained_here: Flag = _flag("trained in this run")
    taken_from: Text = _key("directory of another run's reference that was used instead")
    curve: Rows[CurvePoint] = _list("validation losses of its own training")
    card: Values = _dict("fields of its model card that the target's card repeats")


class Overlap(_Part):
    """Held-out text that also occurs in the training text."""

    duplicate_documents: Number = _key("share of held-out documents, in [0, 1]")
    ngram: Number = _key("length of the token sequences that were compared")
    share: Number = _key("share of held-out sequences that also occur in the training text")
    method: Text = _key("how it was measured")


class TokenFacts(_Part):
    """The text, as tokens."""

    source: Any = _key("`data.source` of the recipe")
    train_tokens: Number = _key("tokens for training")
    val_tokens: Number = _key("held-out tokens")
    documents: Number = _key("documents of both splits")
    val_documents: Number = _key("held-out documents")
    fingerprint: Text = _key("digest of all tokens; equal for runs on the same tokens")
    commits: Any = _key("commits of the Hub datasets among the sources")
    overlap: Maybe[Overlap] = _key("overlap between the two splits, where it was measured")


class ReferenceLoss(_Part):
    """The reference's loss on the held-out text, which the target is compared with."""

    val_loss: Number = _key("nats per token, mean over validation windows")
    val_loss_se: Number = _key("standard error over windows")
    windows: Number = _key("number of validation windows")
    bits_per_byte: Number = _key("the same in bits per byte of text")


class TrainedModel(_Part):
    """A training and the model it made; for a variant with several seeds, means over them."""

    name: Text = _key("name of the variant in the recipe, or `reference`")
    start: Text = _key("initial weights: `inherit`, `fresh`, `grown`, `stacking`, `trained`")
    made_of: Text = _key("more about the initial weights, where `start` does not say it all")
    layers: Number = _key("number of layers")
    params: Number = _key("parameters; tied weights count once")
    tokens: Number = _key("training tokens, repeats counted")
    first_sample: Number = _key("above 0: it continued from a smaller model that was trained here")
    epochs: Number = _key("passes over the training text")
    start_val_loss: Number = _key("val_loss before the first step, nats per token")
    val_loss: Number = _key("val_loss of the saved model, nats per token")
    val_loss_se: Number = _key("standard error over windows")
    fp32_val_loss: Number = _key("val_loss of the weights before they were rounded to `dtype`")
    dtype: Text = _key("dtype of the saved weights, such as `BF16`")
    bytes: Number = _key("size of the saved weights")
    val_loss_sd: Number = _key("sample standard deviation over seeds")
    num_seeds: Number = _key("number of seeds")
    seed: Number = _key("seed of the training")
    seeds: Rows["TrainedModel"] = _list("one short row per seed")
    difference: Number = _key("val_loss minus the reference loss, paired by window")
    difference_se: Number = _key("standard error of the difference")
    seconds: Number = _key("wall-clock seconds")
    flops_per_token: Number = _key("training FLOPs per token")
    flops: Number = _key("FLOPs in all: training, validations, forwards of the reference")
    reference_flops: Number = _key("of these, forwards of the reference in a distillation")
    distill: Maybe[dict[str, Any]] = _key("settings of the distillation")
    restarts: Number = _key("times it was continued from a checkpoint")
    skipped: Number = _key("steps skipped because a value was not finite")
    settings: Values = _dict("device, precision and kernels, each with its reason")
    notes: Texts = _list("warnings of the training")
    path: Text = _key("directory of the training, relative to the run")
    round: Number = _key("rounds only: counted from 1")
    outcome: Text = _key("rounds only: `matched`, `matched_within_noise` or `not_matched`")
    is_target: Flag = _flag("rounds only: this round is the target")

    @property
    def train_flops_per_token(self) -> float | None:
        """FLOPs per training token; from the totals where the record does not have it."""
        if self.flops_per_token is None and self.flops is not None and self.tokens:
            return self.flops / self.tokens
        return self.flops_per_token

    @property
    def is_scratch(self) -> bool:
        """Whether it began with fresh weights and learnt from text alone."""
        return self.start == "fresh" and not self.distill

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds or, with one seed, standard error over windows."""
        return self.val_loss_se if self.val_loss_sd is None else self.val_loss_sd


class LedgerEntry(_Part):
    """One cost of the run."""

    item: Text = _key("the training or measurement that was paid for")
    tokens: Number = _key("training tokens")
    flops: Number = _key("floating point operations")
    seconds: Number = _key("wall-clock seconds")
    processes: Number = _key("processes, each with a device")
    device_hours: Number = _key("seconds times processes, in hours")
    borrowed: Flag = _flag("paid outside this run; in no total")
    price: Number = _key("cost of the machine's time, in `recipe.cost.currency`")
    note: Text = _key("a remark on the entry")


class PriceRecord(_Part):
    """Money paid for the machine's time."""

    paid: Number = _key("sum of all entries that are not borrowed")
    currency: Text = _key("from the recipe")
    price_per_hour: Number = _key("from the recipe")


class Result(_Part):
    """The result, as `run --json` prints it. `train` writes other fields: see its page."""

    outcome: Text = _key("`matched`, `matched_within_noise` or `not_matched`")
    layers: Number = _key("layers of the target")
    reference_layers: Number = _key("layers of the reference")
    rounds: Any = _key("number of rounds")
    benchmark: Number = _key("reference loss, nats per token")
    val_loss: Number = _key("val_loss of the target, nats per token")
    val_loss_se: Number = _key("standard error over windows")
    seeds: Any = _key("seeds that the target was trained with")
    seeds_matched: Number = _key("number of these that matched")
    gap_closed: Number = _key("(scratch - target) / (scratch - reference); null: not defined")
    tokens: Number = _key("training tokens of the whole run, without what was borrowed")
    flops: Number = _key("FLOPs of the whole run, without what was borrowed")
    seconds: Number = _key("seconds of the whole run, without what was borrowed")
    device_hours: Number = _key("device-hours of the whole run, without what was borrowed")
    price: Maybe[PriceRecord] = _key("what it cost, where the recipe has a price per hour")
    variants: Any = _key("a short row per model, as `variants`")
    gains: Any = _key("a short row for reference and target, as `gains`, with medians")
    run: Text = _key("the run's directory, as given")
    target: Text = _key("the target's model directory")
    report: Text = _key("the report page")


class LayerAttentionRecord(_Part):
    """Attention of one layer."""

    layer: Number = _key("index from the input, from 0")
    rank: Numbers = _list("attention rank of each head, mean over sequences")
    max_rank: Number = _key("rank of the fullest head")
    avg_mass: Number = _key("attention mass, mean over heads")
    sink_share: Number = _key("attention that falls on the first token, in [0, 1]")
    heads_near_one: Number = _key("share of heads below rank 1.5, in [0, 1]")
    lazy: Flag = _flag("all heads have rank 1 on every sequence")


class LayerImportanceRecord(_Part):
    """Importance of one layer."""

    layer: Number = _key("index from the input, from 0")
    influence: Number = _key("1 - cosine of the layer's input and output")
    removal_loss: Number = _key("rise of the loss when the layer is skipped, nats per token")


class AttentionLayers(_Part):
    """Attention, layer by layer."""

    layers: Rows[LayerAttentionRecord] = _list("one row per layer")


class ImportanceLayers(_Part):
    """Importance, layer by layer."""

    layers: Rows[LayerImportanceRecord] = _list("one row per layer")


class AnalysedModel(_Part):
    """One model of the analysis."""

    role: Text = _key("`reference`, `target` or `model`")
    name: Text = _key("its name")
    attention: AttentionLayers = _part(AttentionLayers, "attention, layer by layer")
    importance: ImportanceLayers = _part(ImportanceLayers, "importance, layer by layer")


class SequencesRecord(_Part):
    """The sequences that were analysed."""

    sequences: Number = _key("number of sequences")
    tokens_per_sequence: Number = _key("their length")
    bos: Flag = _flag("each begins with BOS")


class Level(_Part):
    """Rank and mass of an attention pattern of known form."""

    rank: Number = _key("attention rank")
    mass: Number = _key("attention mass")


class AdviceRecord(_Part):
    """Number of layers to begin with."""

    paper: Number = _key("by the papers' rule")
    advice: Number = _key("by the analysis")
    reason: Text = _key("why")


class AnalysisRecord(_Part):
    """Attention and importance of layers, where the recipe asks for them."""

    threshold: Number = _key("share of squared singular values that a rank holds, in (0, 1]")
    sequences: SequencesRecord = _part(SequencesRecord, "the sequences that were analysed")
    calibration: Annotated[dict[str, Level], BeforeValidator(_mapping)] = _dict(
        "rank and mass of attention patterns of known form"
    )
    models: Rows[AnalysedModel] = _list("the reference and the target")
    advice: AdviceRecord = _part(AdviceRecord, "layers to begin with")


class MetricRecord(_Part):
    """One metric of a task."""

    value: Number = _key("the score")
    se: Number = _key("its standard error")
    lower: Flag = _flag("lower is better")


class ScoreRecord(_Part):
    """The answers of one model to one task."""

    task: Text = _key("name of the task in lm-eval")
    shots: Number = _key("examples in the prompt")
    metrics: Annotated[dict[str, MetricRecord], BeforeValidator(_mapping)] = _dict(
        "metrics by name"
    )
    key: Values = _dict("everything that the score depends on")


class EvaluatedModelRecord(_Part):
    """The scores of one model."""

    name: Text = _key("name of the variant, or `reference`")
    model: Text = _key("`evaluate` only: the model as it was named")
    role: Text = _key("`reference`, `target` or `control`")
    layers: Number = _key("number of layers")
    tokens: Number = _key("training tokens")
    scores: Rows[ScoreRecord] = _list("one row per task")

    def score(self, task: str) -> ScoreRecord:
        """The model's answers to a task; empty where there are none."""
        return next((score for score in self.scores if score.task == task), ScoreRecord())


class Failure(_Part):
    """A task that could not be answered."""

    model: Text = _key("name of the model")
    task: Text = _key("name of the task")
    message: Text = _key("why")


class EvaluationRecord(_Part):
    """Task scores, where the recipe asks for tasks."""

    lm_eval_version: Text = _key("version of lm-eval")
    tasks: Texts = _list("tasks and suites that the recipe names")
    models: Rows[EvaluatedModelRecord] = _list("scores of the trained models")
    at: Rows[EvaluatedModelRecord] = _list("scores of snapshots in mid-training")
    failures: Rows[Failure] = _list("tasks that failed")


class SpreadRecord(_Part):
    """Repeated measurements."""

    median: Number = _key("their median")
    low: Number = _key("the lowest")
    high: Number = _key("the highest")

    def __str__(self) -> str:
        return f"{self.median:g} ({self.low:g} to {self.high:g})" if self else ""


class FidelityRecord(_Part):
    """How close a model's predictions q are to the reference's p, on all validation windows."""

    kl: Number = _key("KL(p || q), nats per token")
    kl_se: Number = _key("its standard error over windows")
    top1: Number = _key("share of tokens at which both think the same token the likeliest")
    top1_se: Number = _key("its standard error over windows")
    overlap: Number = _key("sum of min(p, q), in [0, 1]")
    overlap_se: Number = _key("its standard error over windows")
    windows: Number = _key("number of windows")
    tokens: Number = _key("predicted tokens")


class SpeedRecord(_Part):
    """Size and speed of one model."""

    name: Text = _key("its name")
    layers: Number = _key("number of layers")
    params: Number = _key("parameters; tied weights count once")
    disk_bytes: Number = _key("size of the weight files")
    peak_bytes: Number = _key("most memory of its tensors at once while it generates")
    cache_bytes_per_token: Number = _key("what each further token adds to the cache")
    prefill: SpreadRecord = _part(SpreadRecord, "tokens of the prompt per second, in one forward")
    decode: SpreadRecord = _part(SpreadRecord, "new tokens per second after the first")
    first_token: SpreadRecord = _part(SpreadRecord, "seconds to the first new token")
    fidelity: Maybe[FidelityRecord] = _key("how close its predictions are to the first model's")


class GainsRecord(_Part):
    """What the target gains and loses against its reference, where the recipe asks for it."""

    device: Text = _key("processor or GPU")
    dtype: Text = _key("dtype of weights and cache while speed and memory were measured")
    prompt_tokens: Number = _key("length of the prompts")
    new_tokens: Number = _key("tokens that were generated after each prompt")
    repeats: Number = _key("prompts, each given to every model in turn")
    models: Rows[SpeedRecord] = _list("the reference and the target")


class Sample(_Part):
    """Text that a model generated."""

    model: Text = _key("name of the variant, `reference` or `target`")
    prompt: Text = _key("the beginning, from the recipe")
    text: Text = _key("what the model wrote after it")


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one or several trainings; None where the record does not have it."""

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None


class RunRecord(StartRecord):
    """run.json: what a run was asked for, what happened, and what came of it."""

    format: Number = _key("version of this format: 1")
    command: Text = _key("`run`: made from a recipe; `train`: by `train MODEL TOKENS OUT`")
    name: Text = _key("name of the recipe")
    status: Text = _key("`running`, `done`, `interrupted` or `failed`")
    started_at: Text = _key("time of the first start, UTC")
    finished_at: Text = _key("time of the last end, UTC")
    seconds: Number = _key("wall-clock seconds of all starts")
    exit_code: Number = _key("exit code of the last start")
    error: Text = _key("error that ended the last start")
    recipe: Values = _dict("the recipe with all defaults filled in")
    origins: Values = _dict("where each value comes from: file, preset, `--set`, default")
    scaled: Text = _key("how `--scale` reduced the recipe, where it did")
    earlier: Rows[StartRecord] = _list("versions and machines of earlier starts, where they differ")
    allowed_changes: Texts = _list("recipe keys that a later start was allowed to change")
    settings: Values = _dict("device, precision and kernels of the target's training")
    reference: ReferenceFacts = _part(ReferenceFacts, "the large model")
    tokens: TokenFacts = _part(TokenFacts, "the text")
    benchmark: ReferenceLoss = _part(ReferenceLoss, "the reference loss")
    rounds: Rows[TrainedModel] = _list("the target, one row per size that was trained")
    variants: Rows[TrainedModel] = _list("reference, target and controls, one row each")
    ledger: Rows[LedgerEntry] = _list("every cost")
    notes: Texts = _list("sentences that qualify the result")
    result: Result = _part(Result, "the result; missing while the run is not finished")
    analysis: Maybe[AnalysisRecord] = _key("attention and importance of layers")
    evaluation: EvaluationRecord = _part(EvaluationRecord, "task scores")
    gains: Maybe[GainsRecord] = _key("size, speed and fidelity of reference and target")
    samples: Rows[Sample] = _list("generated text")

    # --- the target and its controls ---

    @cached_property
    def target_name(self) -> str:
        """Name of the variant that inherits and grows."""
        for name, variant in self._planned_variants.items():
            plain = variant.get("select") is None and variant.get("parts") in (None, "all")
            if variant.get("start") == "inherit" and plain:
                return name
        return "inherit"

    @cached_property
    def target(self) -> TrainedModel:
        """The round whose model is the target, else the last one; empty before any has ended."""
        size = self.result.layers
        same_size = [row for row in self.rounds if size is None or row.layers == size]
        return (same_size or self.rounds or [TrainedModel()])[-1]

    @property
    def target_row(self) -> TrainedModel:
        """The target among the variants, over all of its seeds; empty before there is a result."""
        rows = (row for row in self.variants if row.name == self.target_name)
        return next(rows, TrainedModel())

    @property
    def target_layers(self) -> float | None:
        """Layers of the target, or of its last round so far."""
        return self.target.layers if self.result.layers is None else self.result.layers

    @property
    def target_loss(self) -> float | None:
        """val_loss of the target's first seed, nats per token."""
        return self.target.val_loss if self.result.val_loss is None else self.result.val_loss

    @property
    def reference_loss(self) -> float | None:
        """The reference's val_loss, nats per held-out token."""
        recorded = self.result.benchmark
        return self.benchmark.val_loss if recorded is None else recorded

    @property
    def reference_layers(self) -> float | None:
        """Layers of the reference."""
        return self.reference.layers or self.result.reference_layers

    @cached_property
    def scratch(self) -> TrainedModel:
        """The control with fresh weights, the target's size and one round's tokens; or empty."""
        candidates = [
            row
            for row in self.variants
            # `made_of`: with another learning rate, or a part of stacking.
            if row.is_scratch and not row.made_of and row.val_loss is not None
            if row is not self.equal_compute
        ]
        layers, tokens = self.result.layers or self.target.layers, self.target.tokens
        same_size = [row for row in candidates if layers is None or row.layers == layers]
        same_tokens = [row for row in same_size if tokens is None or row.tokens == tokens]
        named = [row for row in same_tokens or same_size if row.name == "scratch"]
        return (named or same_tokens or same_size or [TrainedModel()])[0]

    @cached_property
    def equal_compute(self) -> TrainedModel:
        """The control with fresh weights and the FLOPs of all rounds together; or empty."""
        for row in self.variants:
            name = row.name or ""
            planned = self._planned_variants.get(name, {}).get("tokens") == "equal_compute"
            usual = name.replace("-", "_") in {"equal_compute", "scratch_equal_compute"}
            if row.is_scratch and (planned or usual):
                return row
        return TrainedModel()

    # --- the plan ---

    def recipe_section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty where it is missing."""
        section: dict[str, Any] = _mapping(self.recipe.get(name))
        return section

    @property
    def _planned_variants(self) -> dict[str, dict[str, Any]]:
        variants = self.recipe_section("variants")
        return {str(name): _mapping(variant) for name, variant in variants.items()}

    def planned_tokens(self, variant: str) -> float | None:
        """Tokens that the recipe gives a training; None where only the run itself can tell."""
        tokens = self._planned_variants.get(variant, {}).get("tokens")
        if tokens is None:
            tokens = self.recipe_section("train").get("tokens")
        return finite_number(tokens)  # None for a word such as equal_compute

    @property
    def tolerance(self) -> float | None:
        """Nats above the reference loss that still count as matched."""
        return finite_number(self.recipe_section("grow").get("tolerance"))

    @property
    def currency(self) -> str:
        """Currency of the prices."""
        return str(self.recipe_section("cost").get("currency") or "")[:10]

    # --- outcome and cost ---

    @property
    def outcome(self) -> str:
        """``matched``, ``matched_within_noise``, ``not_matched``, ``failed`` or ``unfinished``."""
        if self.result.outcome in ("matched", "matched_within_noise", "not_matched"):
            return self.result.outcome
        return "failed" if self.status == "failed" else "unfinished"

    @property
    def paid_entries(self) -> list[LedgerEntry]:
        """Entries of the ledger that are not borrowed."""
        return [entry for entry in self.ledger if not entry.borrowed]

    @property
    def target_cost(self) -> TrainingCost:
        """Cost of all rounds of the target, those that were thrown away included."""
        return TrainingCost(
            tokens=_sum([row.tokens for row in self.rounds]),
            flops=_sum([row.flops for row in self.rounds]),
            seconds=_sum([row.seconds for row in self.rounds]),
        )

    @property
    def reference_cost(self) -> TrainingCost:
        """Cost of the reference's own training, wherever that was."""
        trained_tokens = self.reference.trained_tokens
        for entry in self.ledger:
            if (entry.item or "").lower().startswith("reference training"):
                tokens = entry.tokens or trained_tokens or None
                return TrainingCost(tokens, entry.flops or None, entry.seconds)
        return TrainingCost(trained_tokens or None)


def read_run_json(run_root: Path) -> dict[str, Any]:
    """Read ``run.json`` of a run as it is, of whatever version.

    Raises:
        DataError: There is no ``run.json``, or it is not one JSON object.
    """
    path = run_root / "run.json"
    try:
        # Not the strict reader: NaN or half a surrogate pair must not hide the rest of a run.
        content = json.loads(read_regular_file(path, OWN_FILE.max_bytes))
    except OSError as error:
        raise DataError(
            f"cannot read {escape(path, 300)}: {error.strerror}.",
            "Give the directory of a run: the one that holds run.json.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{escape(path, 300)} is not JSON.", "Run the recipe again to write it anew."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{escape(path, 300)} holds no JSON object.", "Run the recipe again to write it anew."
        )
    return content


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
