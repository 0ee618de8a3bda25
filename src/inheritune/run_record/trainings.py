"""Define the sections of run.json on the start, the reference, the trainings and the result."""

from collections.abc import Sequence
from typing import Any

from inheritune.run_record.fields import (
    Flag,
    Maybe,
    Number,
    Numbers,
    Part,
    Rows,
    Text,
    Texts,
    Values,
    finite_number,
    flag,
    items,
    key,
    mapping,
)
from inheritune.run_record.measurements import FidelityRecord


class StartRecord(Part):
    """Versions and hardware of one start of the run."""

    versions: Values = mapping("versions of inheritune, Python and the libraries")
    machine: Values = mapping("processor, cores, memory, device and system")
    processes: Number = key("processes that shared the work")


class CurvePoint(Part):
    """One validation of the reference's own training."""

    tokens: Number = key("training tokens up to then")
    val_loss: Number = key("nats per token")


class ReferenceFacts(Part):
    """The model that layers were inherited from."""

    model: Text = key("its name in the recipe: a path, a Hub id or `embedded:demo`")
    layers: Number = key("number of layers")
    params: Number = key("parameters; tied weights count once")
    revision: Text = key("commit of a Hub model")
    digest: Text = key("XXH3 digest of its weights and config")
    trained_tokens: Number = key("tokens of its own training, repeats counted")
    trained_here: Flag = flag("trained in this run")
    taken_from: Text = key("directory of another run's reference that was used instead")
    curve: Rows[CurvePoint] = items("validation losses of its own training")
    safe_layers: Numbers = items("sizes from the first round on at which it is safe to cut")
    card: Values = mapping("fields of its model card that the target's card repeats")


class Overlap(Part):
    """Held-out text that also occurs in the training text."""

    duplicate_documents: Number = key("share of held-out documents, in [0, 1]")
    ngram: Number = key("length of the token sequences that were compared")
    share: Number = key("share of held-out sequences that also occur in the training text")
    method: Text = key("how it was measured")


class TokenFacts(Part):
    """The text, as tokens."""

    source: Any = key("`data.source` of the recipe")
    train_tokens: Number = key("tokens for training")
    val_tokens: Number = key("held-out tokens")
    documents: Number = key("documents of both splits")
    val_documents: Number = key("held-out documents")
    fingerprint: Text = key("digest of all tokens; equal for runs on the same tokens")
    commits: Any = key("commits of the Hub datasets among the sources")
    overlap: Maybe[Overlap] = key("overlap between the two splits, where it was measured")


class ReferenceLoss(Part):
    """The reference's loss on the held-out text, which the target is compared with."""

    val_loss: Number = key("nats per token, mean over validation windows")
    val_loss_se: Number = key("standard error over windows")
    windows: Number = key("number of validation windows")
    bits_per_byte: Number = key("the same in bits per byte of text")


class TrainedModel(Part):
    """A training and the model it made; for a variant with several seeds, means over them."""

    name: Text = key("name of the variant in the recipe, or `reference`")
    start: Text = key("initial weights: `inherit`, `fresh`, `grown`, `stacking`, `trained`")
    made_of: Text = key("more about the initial weights, where `start` does not say it all")
    layers: Number = key("number of layers")
    kept: Numbers = items("the reference's layers that it has, where it inherited whole ones")
    params: Number = key("parameters; tied weights count once")
    tokens: Number = key("training tokens, repeats counted")
    first_sample: Number = key("above 0: it continued from a smaller model that was trained here")
    epochs: Number = key("passes over the training text")
    start_val_loss: Number = key("val_loss before the first step, nats per token")
    val_loss: Number = key("val_loss of the saved model, nats per token")
    val_loss_se: Number = key("standard error over windows")
    fp32_val_loss: Number = key("val_loss of the weights before they were rounded to `dtype`")
    dtype: Text = key("dtype of the saved weights, such as `BF16`")
    bytes: Number = key("size of the saved weights")
    val_loss_sd: Number = key("sample standard deviation over seeds")
    num_seeds: Number = key("number of seeds")
    seed: Number = key("seed of the training")
    seeds: Rows["TrainedModel"] = items("one short row per seed")
    difference: Number = key("val_loss minus the reference loss, paired by window")
    difference_se: Number = key("standard error of the difference")
    seconds: Number = key("wall-clock seconds")
    flops_per_token: Number = key("training FLOPs per token")
    flops: Number = key("FLOPs in all: training, validations, forwards of the reference")
    reference_flops: Number = key("of these, forwards of the reference in a distillation")
    distill: Maybe[dict[str, Any]] = key("settings of the distillation")
    fidelity: Maybe[FidelityRecord] = key("how close its predictions are to the reference's")
    task_loss: Maybe[dict[str, Any]] = key(
        "by how much its tasks lie below the reference's: `mean` and `se` over `tasks`"
    )
    repair: Maybe[dict[str, Any]] = key(
        "of a repaired start: method, tokens, FLOPs, seconds, and the cut's val_loss before it; "
        "`shared`: what was made for another training, by whose path, and is counted there"
    )
    restarts: Number = key("times it was continued from a checkpoint")
    skipped: Number = key("steps skipped because a value was not finite")
    settings: Values = mapping("device, precision and kernels, each with its reason")
    notes: Texts = items("warnings of the training")
    path: Text = key("directory of the training, relative to the run")
    round: Number = key("rounds only: counted from 1")
    outcome: Text = key("rounds only: `matched`, `matched_within_noise` or `not_matched`")
    criteria: Values = mapping("rounds only: the same for each criterion of `grow.match`")
    is_target: Flag = flag("rounds only: this round is the target")

    @property
    def train_flops_per_token(self) -> float | None:
        """FLOPs per training token; from the totals where the record does not have it."""
        if self.flops_per_token is None and self.flops is not None and self.tokens:
            return self.flops / self.tokens
        return self.flops_per_token

    @property
    def cut_val_loss(self) -> float | None:
        """val_loss of a repaired start's cut, before the repair."""
        return finite_number((self.repair or {}).get("cut_val_loss"))

    @property
    def is_scratch(self) -> bool:
        """Whether it began with fresh weights and learnt from text alone."""
        return self.start == "fresh" and not self.distill

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds or, with one seed, standard error over windows."""
        return self.val_loss_se if self.val_loss_sd is None else self.val_loss_sd


GAINS_STAGE = "size and speed"


class StageRecord(Part):
    """One stage of the run, in the order of the run."""

    name: Text = key("what is done: `text`, `inherit, 4 layers`")
    began_at: Text = key("time of its last beginning, UTC; missing while it is to come")
    seconds: Number = key("wall-clock seconds of all starts, once it has ended")
    variant: Text = key("trainings only: name of the variant")
    layers: Number = key("trainings only: number of layers, where it is known")
    seed: Number = key("trainings only: seed of one that repeats another")
    tokens: Number = key("trainings only: tokens that are planned")
    optional: Flag = flag("a round that comes only if none before it matches")


def work_to_come(stages: Sequence[StageRecord], layers: float) -> float:
    """Sum tokens times layers of the trainings to come, without rounds that may not be needed.

    A control of equal compute has no planned tokens: it takes as much as all rounds of the target.

    Args:
        layers: Taken for a training whose number of layers is not known yet.
    """
    trainings = [stage for stage in stages if stage.variant and not stage.optional]
    rounds = [s for s in trainings if s.variant == trainings[0].variant and s.seed is None]

    def work(stage: StageRecord) -> float:
        return (stage.tokens or 0) * (stage.layers or layers)

    of_rounds = sum(map(work, rounds))
    to_come = [stage for stage in trainings if not stage.began_at]
    return sum(of_rounds if stage.tokens is None else work(stage) for stage in to_come)


class LedgerEntry(Part):
    """One cost of the run."""

    item: Text = key("the training or measurement that was paid for")
    tokens: Number = key("training tokens")
    flops: Number = key("floating point operations")
    seconds: Number = key("wall-clock seconds")
    processes: Number = key("processes, each with a device")
    device_hours: Number = key("seconds times processes, in hours")
    borrowed: Flag = flag("paid outside this run; in no total")
    price: Number = key("cost of the machine's time, in `recipe.cost.currency`")
    note: Text = key("a remark on the entry")


class PriceRecord(Part):
    """Money paid for the machine's time."""

    paid: Number = key("sum of all entries that are not borrowed")
    currency: Text = key("from the recipe")
    price_per_hour: Number = key("from the recipe")


class TrainedReferenceRecord(Part):
    """The control that is the whole reference, trained on the tokens of the target's round."""

    name: Text = key("name of the variant")
    difference: Number = key("the target's val_loss minus its own, paired by window")
    difference_se: Number = key("standard error of the difference")


class Result(Part):
    """The result, as `run --json` prints it. `train` writes other fields: see its page."""

    outcome: Text = key("`matched`, `matched_within_noise` or `not_matched`")
    method: Text = key("`paper` or `best`, as `run --method` names them; `own`: neither")
    layers: Number = key("layers of the target")
    reference_layers: Number = key("layers of the reference")
    rounds: Any = key("number of rounds")
    benchmark: Number = key("reference loss, nats per token")
    val_loss: Number = key("val_loss of the target, nats per token")
    val_loss_se: Number = key("standard error over windows")
    seeds: Any = key("seeds that the target was trained with")
    seeds_matched: Number = key("number of these that matched")
    gap_closed: Number = key("(scratch - target) / (scratch - reference); null: not defined")
    trained_reference: Maybe[TrainedReferenceRecord] = key(
        "the target beside the reference trained on the same tokens, where a control did that"
    )
    tokens: Number = key("training tokens of the whole run, without what was borrowed")
    flops: Number = key("FLOPs of the whole run, without what was borrowed")
    seconds: Number = key("seconds of the whole run, without what was borrowed")
    device_hours: Number = key("device-hours of the whole run, without what was borrowed")
    price: Maybe[PriceRecord] = key("what it cost, where the recipe has a price per hour")
    variants: Any = key("a short row per model, as `variants`")
    gains: Any = key("a short row for reference and target, as `gains`, with medians")
    run: Text = key("the run's directory, as given")
    target: Text = key("the target's model directory")
    report: Text = key("the report page")
