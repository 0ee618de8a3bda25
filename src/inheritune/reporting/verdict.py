"""What the run found, in one sentence; and the sentences that must be read with it."""

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
from inheritune.reporting.record import (
    Record,
    benchmark_of,
    equal_compute_of,
    number,
    reference_cost,
    rows,
    scratch_of,
    section,
    target_cost,
    target_of,
    target_row,
    text,
)

__all__ = ["GAP_CLOSED", "headline", "outcome", "remarks", "verdict"]

GAP_CLOSED = (
    "gap closed = (scratch − target) / (scratch − reference), in val_loss of a scratch model of "
    "the target's size on the tokens of one round; 100% is a match"
)

_HEADLINES = {
    "matched": "Matched",
    "matched_within_noise": "Matched within noise",
    "not_matched": "Not matched",
    "unfinished": "No answer yet",
    "failed": "No answer",
}


def outcome(record: Record) -> str:
    """Key of the outcome.

    Returns:
        ``matched``, ``matched_within_noise`` or ``not_matched`` as recorded; ``failed`` or
        ``unfinished`` when the record holds no result.
    """
    key = section(record, "result").get("outcome")
    if isinstance(key, str) and key in ("matched", "matched_within_noise", "not_matched"):
        return key
    return "failed" if record.get("status") == "failed" else "unfinished"


def headline(record: Record) -> str:
    """The outcome in at most three words."""
    return _HEADLINES[outcome(record)]


def verdict(record: Record) -> str:
    """One honest sentence: did the target match, by how much, at what cost.

    Args:
        record: ``run.json``; any field may be missing.

    Returns:
        The sentence, starting with the outcome. All rounds are counted in its cost, and the
        share of the reference's own training is stated where that is known.
    """
    key = outcome(record)
    if key in ("unfinished", "failed"):
        return _without_result(record, key)
    return f"{headline(record)}: {_finding(record, key)}{_cost(record)}."


def remarks(record: Record) -> list[str]:
    """Sentences without which the verdict would say too much."""
    found = [
        text(record, "scaled"),
        _depth(record),
        _tolerance(record),
        _gap(record),
        _scratch(record),
        _equal_compute(record),
        _borrowed(record),
        _price(record),
        _seeds(record),
    ]
    return [sentence for sentence in found if sentence]


def _finding(record: Record, key: str) -> str:
    result, last = section(record, "result"), target_of(record)
    layers = result.get("layers") or last.get("layers")
    total = result.get("reference_layers") or section(record, "reference").get("layers")
    size = f"{layers} of {total} layers" if layers and total else "fewer layers"
    reached = _first(number(result, "val_loss"), number(last, "val_loss"))
    benchmark = benchmark_of(record)
    ending = f"the target with {size} reaches a validation loss of {loss(reached)}"
    difference, error = number(last, "difference"), number(last, "difference_se")
    if difference is None and reached is not None and benchmark is not None:
        difference = reached - benchmark
    if difference is None:
        return f"{ending}; the reference's is not recorded"
    apart = signed(difference)
    if error is not None:
        apart = f"{apart} ± {error:.3f} nats (paired standard error)"
    against = f"{ending} against the reference's {loss(benchmark)}, a difference of {apart}"
    if key == "matched_within_noise":
        return f"{against}, worse by no more than two standard errors"
    return against


def _cost(record: Record) -> str:
    spent, reference = target_cost(record), reference_cost(record)
    if spent.tokens is None:
        return ""
    rounds = "1 round" if spent.rounds == 1 else f"{spent.rounds} rounds together"
    cost = f"; it took {amount(spent.tokens)} training tokens in {rounds}"
    if not reference.tokens:
        return f"{cost}; what the reference's own training took is not known"
    share = percent(spent.tokens / reference.tokens)
    return f"{cost}, {share} of the {amount(reference.tokens)} the reference was trained on"


def _without_result(record: Record, key: str) -> str:
    done = len(rows(record, "rounds"))
    state = {0: "before its first round ended", 1: "after 1 round"}.get(
        done, f"after {done} rounds"
    )
    if key == "failed":
        error = text(record, "error") or "no error is recorded"
        return f"No answer: the run failed {state}: {error[:600].strip().rstrip('.')}."
    status = record.get("status")
    if status == "interrupted":
        return f"No answer yet: the run was interrupted {state}; run it again to continue."
    if status == "running":
        return f"No answer yet: the run has not ended; this page was made {state}."
    return f"No answer yet: the record ends {state} and holds no result."


def _depth(record: Record) -> str:
    result = section(record, "result")
    layers, total = number(result, "layers"), number(result, "reference_layers")
    if layers is None or layers != total:
        return ""
    return (
        "The target has all layers of the reference: nothing was removed, and what it gained comes "
        "from training on this text."
    )


def _tolerance(record: Record) -> str:
    allowed = number(section(section(record, "recipe"), "grow"), "tolerance")
    if not allowed or outcome(record) != "matched":
        return ""
    return f"The recipe counts up to {loss(allowed)} nats above the benchmark as matched."


def _gap(record: Record) -> str:
    result = section(record, "result")
    if not result:
        return ""
    closed = number(result, "gap_closed")
    if closed is not None:
        return f"Gap closed: {percent(closed)} ({GAP_CLOSED})."
    return (
        "Gap closed: not defined here. It needs a scratch model of the target's size that is "
        "worse than the reference by at least three standard errors."
    )


def _scratch(record: Record) -> str:
    if not section(record, "result"):
        return ""
    control = scratch_of(record)
    reached, benchmark = number(control, "val_loss"), benchmark_of(record)
    if reached is None or benchmark is None:
        return "No same-size scratch control: how much of the result is inheritance is not known."
    target = number(target_row(record), "val_loss") or _target_loss(record)
    if reached <= benchmark:
        return (
            f"Same-size scratch ({loss(reached)}) is no worse than the reference "
            f"({loss(benchmark)}): the reference is undertrained, so this run shows a warm start "
            "and not that fewer layers suffice."
        )
    if target is not None and reached <= target:
        return f"Same-size scratch ({loss(reached)}) is no worse than the target ({loss(target)})."
    return ""


def _equal_compute(record: Record) -> str:
    control = equal_compute_of(record)
    target = number(target_row(record), "val_loss") or _target_loss(record)
    reached = number(control, "val_loss")
    if not section(record, "result"):
        return ""
    if reached is None or target is None:
        return (
            "No equal-compute control: a scratch model given the FLOPs of all rounds together "
            "was not trained, so how it would compare is not known."
        )
    cost = number(control, "flops")
    spent = f" with {flops(cost)} FLOPs" if cost else ""
    arm = f"Scratch given equal compute ({text(control, 'name')}{spent}) reaches {loss(reached)}"
    if abs(reached - target) < 0.0005:
        return f"{arm}, the same as the target."
    if reached < target:
        return f"{arm}: it beats the target by {target - reached:.3f} nats."
    return f"{arm}: the target is better by {reached - target:.3f} nats."


def _borrowed(record: Record) -> str:
    reference, cost = section(record, "reference"), reference_cost(record)
    if reference.get("trained_here"):
        return "The reference was trained in this run; the ledger counts it."
    if not reference:
        return ""
    known = "" if cost.tokens is None else f" ({amount(cost.tokens)} tokens)"
    if reference.get("taken_from"):
        return (
            f"The reference was trained by another run: its training{known} is borrowed here, and "
            "counted there."
        )
    return (
        f"The reference was not trained here: its training{known} is borrowed, and the result "
        "rests on it."
    )


def _price(record: Record) -> str:
    price = section(section(record, "result"), "price")
    paid, rate = number(price, "paid"), number(price, "price_per_hour")
    if paid is None or rate is None:
        return ""
    currency = text(price, "currency")[:10]
    return (
        f"It cost {money(paid)} {currency}: "
        f"{duration(number(section(record, 'result'), 'seconds'))} of the machine at "
        f"{money(rate)} {currency} an hour, all rounds and controls counted, nothing borrowed."
    )


def _seeds(record: Record) -> str:
    if not section(record, "result"):
        return ""
    trained = section(record, "result").get("seeds")
    count = len(trained) if isinstance(trained, list) else 1
    if count < 2:
        return (
            "The target has 1 seed: its spread over seeds is not known; standard errors are over "
            "validation windows only."
        )
    row = target_row(record)
    spread = f"{loss(number(row, 'val_loss'))} ± {loss(number(row, 'val_loss_sd'))}"
    matched = number(section(record, "result"), "seeds_matched")
    said = f"Over {count} seeds the target's val_loss is {spread} (standard deviation over seeds)"
    return f"{said}; it matched in {exact(matched)} of them. The verdict is that of the first."


def _target_loss(record: Record) -> float | None:
    return _first(
        number(section(record, "result"), "val_loss"), number(target_of(record), "val_loss")
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
