"""Check what the result of a run rests on: seeds, equal compute, overlap of texts, reference."""

from dataclasses import dataclass

from inheritune.reporting.quantities import amount, loss, percent
from inheritune.run_record.record import RunRecord

_SAME = 0.0005  # nats; what rounds to 0.000 is no difference
_MOST_OVERLAP = 0.1  # share of held-out token sequences that may also be in the training text


@dataclass(frozen=True)
class Check:
    """One reason to trust the result, or to doubt it."""

    title: str
    holds: bool
    phrase: str  # says why, without a full stop


def checks(record: RunRecord) -> list[Check]:
    """List the checks of a finished run; none before there is a result."""
    if not record.result:
        return []
    always = [_seeds(record), _equal_compute(record), _overlap(record), _reference(record)]
    return [*always, *_same_text(record)]


def mean_target_loss(record: RunRecord) -> float | None:
    """Return the target's val_loss, mean over its seeds."""
    return record.target_row.val_loss or record.target_loss


def _seeds(record: RunRecord) -> Check:
    seeds = record.result.seeds
    count = len(seeds) if isinstance(seeds, list) else 1
    if count < 2:
        return Check("Seeds", False, "one seed, so the spread over seeds is not known")
    spread = loss(record.target_row.val_loss_sd)
    matched = f"{record.result.seeds_matched or 0:.0f} of {count}"
    return Check("Seeds", True, f"{count} seeds, ± {spread}; {matched} matched")


def _equal_compute(record: RunRecord) -> Check:
    title, control = "Equal compute", record.equal_compute.val_loss
    target = mean_target_loss(record)
    if control is None or target is None:
        return Check(title, False, "no scratch control with the FLOPs of all rounds")
    if control <= target:
        return Check(title, False, f"scratch with the same FLOPs is {target - control:.3f} better")
    return Check(title, True, f"scratch with the same FLOPs is {control - target:.3f} worse")


def _overlap(record: RunRecord) -> Check:
    title, measured = "Texts apart", record.tokens.overlap
    if measured is None or (measured.duplicate_documents is None and measured.share is None):
        return Check(title, False, "overlap of training and held-out text was not measured")
    duplicates, share = measured.duplicate_documents or 0.0, measured.share or 0.0
    if duplicates:
        phrase = f"{percent(duplicates)} of held-out documents are in the training text"
        return Check(title, False, phrase)
    length = f"{measured.ngram:.0f}-token" if measured.ngram else "token"
    phrase = f"{percent(share)} of held-out {length} sequences are in the training text"
    return Check(title, share <= _MOST_OVERLAP, phrase)


def _reference(record: RunRecord) -> Check:
    title, scratch, level = "Reference", record.scratch.val_loss, record.reference_loss
    if scratch is not None and level is not None and scratch <= level:
        return Check(title, False, "undertrained: scratch of the target's size is no worse")
    tokens = record.reference_cost.tokens
    on_tokens = f" on {amount(tokens)} tokens" if tokens else ""
    if record.reference.trained_here:
        return Check(title, False, f"trained in this run{on_tokens}: a weak one is easy to match")
    return Check(title, True, f"trained elsewhere{on_tokens}")


def _same_text(record: RunRecord) -> list[Check]:
    """Whether the reference would be better still after the target's training; if it was tried."""
    known = record.result.trained_reference
    if known is None or known.difference is None:
        return []
    is_better = known.difference >= _SAME
    how_much = f"{known.difference:.3f} better" if is_better else "no better"
    phrase = f"the reference, trained on the same tokens, is {how_much}"
    return [Check("Same text", not is_better, phrase)]
