"""Qualify the result of a run: sentences without which the verdict would claim too much."""

from inheritune.reporting.criteria import criteria_remark
from inheritune.reporting.quantities import (
    amount,
    duration,
    exact,
    flops,
    loss,
    money,
    percent,
)
from inheritune.reporting.trust import mean_target_loss, within_noise
from inheritune.reporting.verdict import tone
from inheritune.run_record.record import RunRecord

_GAP_CLOSED = (
    "gap closed = (scratch − target) / (scratch − reference), in val_loss of a scratch model of "
    "the target's size on the tokens of one round; 100% is a match"
)
_METHODS = {
    "paper": "Method: paper, the first layers of the reference, trained on text alone.",
    "best": "Method: best, layers and loss chosen to stay close to the reference; the recipe says "
    "which.",
    "own": "Method: neither paper nor best, but the recipe's own.",
}


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
