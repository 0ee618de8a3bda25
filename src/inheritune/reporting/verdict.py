"""State the result of a run in one sentence, with the remarks that belong to it."""

from inheritune.reporting.criteria import criteria_remark
from inheritune.reporting.gains_table import gained_words
from inheritune.reporting.quantities import (
    amount,
    duration,
    exact,
    flops,
    loss,
    money,
    percent,
    signed,
)
from inheritune.reporting.trust import mean_target_loss, within_noise
from inheritune.run_record.record import RunRecord

_GAP_CLOSED = (
    "gap closed = (scratch − target) / (scratch − reference), in val_loss of a scratch model of "
    "the target's size on the tokens of one round; 100% is a match"
)
_HEADLINES = {
    "matched": "Matched",
    "matched_within_noise": "Matched within noise",
    "not_matched": "Not matched",
    "unfinished": "Unfinished",
    "failed": "Failed",
}
# "starting" is in no run.json: the live page waits for one.
_STATUSES = {"starting": "Starting", "running": "Running", "interrupted": "Interrupted"}
_METHODS = {
    "paper": "Method: paper, the first layers of the reference, trained on text alone.",
    "best": "Method: best, layers and loss chosen to stay close to the reference; the recipe says "
    "which.",
    "own": "Method: neither paper nor best, but the recipe's own.",
}


def tone(record: RunRecord) -> str:
    """Tell the kind of outcome that a page shows by sign and colour.

    Returns:
        `RunRecord.outcome`; ``"recovered"`` for a target that was not asked to match, and did not,
        where training or repair brought back some of what the cut lost.
    """
    if record.outcome != "not_matched" or record.asks_for_match or (record.recovered or 0) <= 0:
        return record.outcome
    return "recovered"


def headline(record: RunRecord) -> str:
    """Name the outcome in at most three words."""
    if record.outcome == "unfinished":
        if record.is_by_workers:
            return "Preparing"
        return _STATUSES.get(record.status or "", _HEADLINES["unfinished"])
    if tone(record) == "recovered":
        return f"{percent(record.recovered)} back"
    return _HEADLINES[record.outcome]


def verdict(record: RunRecord) -> str:
    """State whether the target matched the reference, or how much of it is back, and at what cost.

    All rounds count towards the cost; their share of the reference's own training is given where
    it is known.
    """
    if record.outcome in ("unfinished", "failed"):
        return _without_result(record)
    finding = _recovery(record) if tone(record) == "recovered" else _finding(record)
    return f"{headline(record)}: {finding}{_beside_trained(record)}{_cost(record)}."


def remarks(record: RunRecord) -> list[str]:
    """List sentences without which the verdict would claim too much."""
    if not record.result:
        sentences = [record.scaled, _borrowed(record)]
    else:
        sentences = [
            record.scaled,
            _METHODS.get(record.result.method or "", ""),
            _one_size(record),
            _full_size(record),
            _text_alone(record),
            criteria_remark(record),
            _gap(record),
            _scratch(record),
            _equal_compute(record),
            _borrowed(record),
            _price(record),
            _seeds(record),
        ]
    return [sentence for sentence in sentences if sentence]


def _size(record: RunRecord) -> str:
    layers, total = record.target_layers, record.result.reference_layers or record.reference_layers
    return f"{layers} of {total} layers" if layers and total else "fewer layers"


def _recovery(record: RunRecord) -> str:
    difference, error = record.target.difference, record.target.difference_se
    apart = "" if difference is None else f": {signed(difference)} nats"
    if apart and error is not None:
        apart = f": {signed(difference)} ± {error:.3f} nats, standard error window by window"
    losses = (
        f"validation loss {loss(record.cut_loss)} cut, {loss(record.target_loss)} now, "
        f"{loss(record.reference_loss)} of the reference{apart}"
    )
    gained = ", ".join(gained_words(record))
    return (
        f"of what cutting to {_size(record)} lost, {percent(record.recovered)} is back ({losses})"
        + (f"; {gained}" if gained else "")
    )


def _finding(record: RunRecord) -> str:
    size = _size(record)
    reached, reference_loss = record.target_loss, record.reference_loss
    sentence = f"the target with {size} reaches a validation loss of {loss(reached)}"
    difference, error = record.target.difference, record.target.difference_se
    if difference is None and reached is not None and reference_loss is not None:
        difference = reached - reference_loss
    if difference is None:
        return f"{sentence}; the reference's is not recorded"
    size_of_difference = signed(difference)
    if error is not None:
        size_of_difference += f" ± {error:.3f} nats (standard error, window by window)"
    sentence += (
        f" against the reference's {loss(reference_loss)}, a difference of {size_of_difference}"
    )
    if record.outcome == "matched_within_noise":
        sentence += ", worse by no more than two standard errors"
    if record.gains is not None and (gained := ", ".join(gained_words(record))):
        sentence += f"; {gained}"
    return sentence


def _beside_trained(record: RunRecord) -> str:
    """Compare with what the reference itself learnt from the same tokens, where that was tried."""
    known, level = record.result.trained_reference, record.trained_reference.val_loss
    if known is None or known.difference is None or level is None:
        return ""
    error = "" if known.difference_se is None else f" ± {known.difference_se:.3f}"
    return (
        f"; the reference itself, trained on the same tokens ({known.name}), reaches {loss(level)},"
        f" and the target is {signed(known.difference)}{error} from that"
    )


def _cost(record: RunRecord) -> str:
    tokens, reference_tokens = record.target_cost.tokens, record.reference_cost.tokens
    if tokens is None:
        return ""
    count = sum(row.start != "patched" for row in record.rounds)
    rounds = "1 round" if count == 1 else f"{count} rounds together"
    cost = f"; it took {amount(tokens)} training tokens in {rounds}"
    if not reference_tokens:
        return f"{cost}; the cost of the reference's own training is not known"
    share = percent(tokens / reference_tokens)
    return f"{cost}, {share} of the {amount(reference_tokens)} the reference was trained on"


def _without_result(record: RunRecord) -> str:
    count = len(record.rounds)
    progress = {0: "before its first round ended", 1: "after 1 round"}.get(
        count, f"after {count} rounds"
    )
    if record.outcome == "failed":
        error = (record.error or "no error is recorded")[:600].strip().rstrip(".")
        return f"Failed: the run ended {progress}: {error}."
    if record.is_by_workers:
        return "Preparing: workers prepare the text; the run can begin when all parts are there."
    if record.status == "interrupted":
        return f"Interrupted: the run stopped {progress}; run it again to continue."
    if record.status == "starting":
        return "Starting: there is no record of a run here yet; it appears as soon as there is one."
    if record.status == "running":
        begun = [place for place, stage in enumerate(record.stages, 1) if stage.began_at]
        doing = "the run has not ended"
        if begun:
            name = record.stages[begun[-1] - 1].name
            doing = f"stage {begun[-1]} of {len(record.stages)} is {name}"
        ended = {0: "no round has ended yet", 1: "1 round has ended"}
        return f"Running: {doing}; {ended.get(count, f'{count} rounds have ended')}."
    return f"Unfinished: the record ends {progress} and holds no result."


def _one_size(record: RunRecord) -> str:
    if tone(record) != "recovered":
        return ""
    return (
        "This size was asked for, whether it matches or not (grow.add: 0), and it does not match "
        "the reference loss. What is back is (cut − target) / (cut − reference): a worse cut makes "
        "it easier, so the difference itself says how good the target is."
    )


def _full_size(record: RunRecord) -> str:
    layers = record.result.layers
    if layers is None or layers != record.result.reference_layers:
        return ""
    return (
        "The target has all layers of the reference: nothing was removed, and any gain comes from "
        "training on this text."
    )


def _text_alone(record: RunRecord) -> str:
    """Say whether a target below its reference is better, or has learnt the text."""
    known, reached = record.result.trained_reference, record.target_loss
    level = record.reference_loss
    if _full_size(record) or reached is None or level is None or reached > level:
        return ""
    if known is None:
        return (
            "The reference was not trained on the target's tokens, so it is not known how much of "
            "the target's low loss comes from these tokens (a variant with layers: all tells)."
        )
    apart = known.difference
    if apart is None or apart <= 0 or within_noise(apart, known.difference_se):
        return ""
    return (
        "The target is below the reference as it comes, and above the reference trained on the "
        "same tokens: it has learnt this text, and is not the better model."
    )


def _gap(record: RunRecord) -> str:
    if record.scratch.val_loss is None and record.equal_compute.val_loss is not None:
        return ""  # the harder control is there instead
    if record.result.gap_closed is not None:
        return f"Gap closed: {percent(record.result.gap_closed)} ({_GAP_CLOSED})."
    return (
        "Gap closed: not defined here. It needs a scratch model of the target's size that is worse "
        "than the reference by at least three standard errors."
    )


def _scratch(record: RunRecord) -> str:
    scratch_loss, reference_loss = record.scratch.val_loss, record.reference_loss
    if scratch_loss is None and record.equal_compute.val_loss is not None:
        return ""
    if scratch_loss is None or reference_loss is None:
        return (
            "No scratch control of the same size: how much of the result is due to inheritance is "
            "not known."
        )
    target_loss = mean_target_loss(record)
    if scratch_loss <= reference_loss:
        return (
            f"Scratch of the same size ({loss(scratch_loss)}) is no worse than the reference "
            f"({loss(reference_loss)}): the reference is undertrained, so this run shows a warm "
            "start and not that fewer layers suffice."
        )
    if target_loss is not None and scratch_loss <= target_loss:
        return (
            f"Scratch of the same size ({loss(scratch_loss)}) is no worse than the target "
            f"({loss(target_loss)})."
        )
    return ""


def _equal_compute(record: RunRecord) -> str:
    control, target_loss = record.equal_compute, mean_target_loss(record)
    if control.val_loss is None or target_loss is None:
        return (
            "No equal-compute control: a scratch model given the FLOPs of all rounds together was "
            "not trained, so how it would compare is not known."
        )
    with_flops = f" with {flops(control.flops)} FLOPs" if control.flops else ""
    sentence = (
        f"Scratch given equal compute ({control.name}{with_flops}) reaches {loss(control.val_loss)}"
    )
    advantage = control.val_loss - target_loss
    if abs(advantage) < 0.0005:
        return f"{sentence}, the same as the target."
    if advantage < 0:
        return f"{sentence}: it beats the target by {-advantage:.3f} nats."
    return f"{sentence}: the target is better by {advantage:.3f} nats."


def _borrowed(record: RunRecord) -> str:
    if not record.reference:
        return ""
    if record.reference.trained_here:
        return "The reference was trained in this run; the ledger counts it."
    tokens = record.reference_cost.tokens
    how_much = "" if tokens is None else f" ({amount(tokens)} tokens)"
    if record.reference.taken_from:
        return (
            f"The reference was trained by another run: its training{how_much} is borrowed here, "
            "and counted there."
        )
    return (
        f"The reference was not trained here: its training{how_much} is borrowed, and the result "
        "depends on it."
    )


def _price(record: RunRecord) -> str:
    price = record.result.price
    if price is None or price.paid is None or price.price_per_hour is None:
        return ""
    currency = (price.currency or "")[:10]
    return (
        f"It cost {money(price.paid)} {currency}: {duration(record.result.seconds)} of the machine "
        f"at {money(price.price_per_hour)} {currency} an hour, all rounds and controls counted, "
        "nothing borrowed."
    )


def _seeds(record: RunRecord) -> str:
    seeds = record.result.seeds
    count = len(seeds) if isinstance(seeds, list) else 1
    if count < 2:
        return (
            "The target has 1 seed: its spread over seeds is not known; standard errors are over "
            "validation windows only."
        )
    row = record.target_row
    return (
        f"Over {count} seeds the target's val_loss is {loss(row.val_loss)} ± "
        f"{loss(row.val_loss_sd)} (standard deviation over seeds); it matched in "
        f"{exact(record.result.seeds_matched)} of them. The verdict is that of the first."
    )
