"""State the result of a run in one sentence; see `remarks` for what belongs to it."""

from inheritune.reporting.gains_table import gained_words
from inheritune.reporting.quantities import amount, loss, percent, signed
from inheritune.run_record.record import RunRecord

_HEADLINES = {
    "matched": "Matched",
    "matched_within_noise": "Matched within noise",
    "not_matched": "Not matched",
    "unfinished": "Unfinished",
    "failed": "Failed",
}
# "starting" is in no run.json: the live page waits for one.
_STATUSES = {
    "starting": "Starting",
    "preparing": "Preparing",
    "running": "Running",
    "interrupted": "Interrupted",
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
