"""Check what the result of a run rests on: windows, seeds, controls, overlap of texts."""

from dataclasses import dataclass

from inheritune.reporting.quantities import amount, loss, percent
from inheritune.run_record.record import RunRecord

_MOST_OVERLAP = 0.1  # share of held-out token sequences that may also be in the training text
_FEW_WINDOWS = 30  # fewer give no standard error to rely on
_NOISE_SE = 2.0  # differences within so many standard errors are called noise


@dataclass(frozen=True)
class Check:
    """One reason to trust the result, or to doubt it."""

    title: str
    holds: bool
    phrase: str  # says why, without a full stop


def checks(record: RunRecord) -> list[Check]:
    """List the five checks of a finished run; none before there is a result."""
    if not record.result:
        return []
    return [check(record) for check in (_windows, _seeds, _equal_compute, _reference, _overlap)]


def mean_target_loss(record: RunRecord) -> float | None:
    """Return the target's val_loss, mean over its seeds."""
    return record.target_row.val_loss or record.target_loss


def within_noise(difference: float, error: float | None) -> bool:
    """Tell whether a difference is at most two standard errors."""
    return abs(difference) <= _NOISE_SE * (error or 0.0)


def _windows(record: RunRecord) -> Check:
    title, windows = "Held-out text", record.benchmark.windows
    difference, error = record.target.difference, record.target.difference_se
    if windows is None or difference is None or error is None:
        return Check(title, False, "the standard error of the difference is not known")
    measured = f"{windows:,.0f} validation windows"
    if windows < _FEW_WINDOWS:
        return Check(title, False, f"only {measured}: too few for a standard error")
    if within_noise(difference, error):
        return Check(title, False, f"{measured}: the difference lies within its noise")
    times = f"{abs(difference) / error:.1f}" if error else "infinitely many"
    return Check(title, True, f"{measured}: the difference is {times} standard errors")


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
    return Check(title, share <= _MOST_OVERLAP, f"{phrase} (limit {percent(_MOST_OVERLAP)})")


def _reference(record: RunRecord) -> Check:
    """Check that neither a weak reference nor the text alone explains the result."""
    title, scratch, level = "Reference", record.scratch.val_loss, record.reference_loss
    if scratch is not None and level is not None and scratch <= level:
        return Check(title, False, "undertrained: scratch of the target's size is no worse")
    tokens = record.reference_cost.tokens
    on_tokens = f" on {amount(tokens)} tokens" if tokens else ""
    if record.reference.trained_here or record.reference.taken_from:
        where = "in this run" if record.reference.trained_here else "by another run"
        return Check(title, False, f"trained {where}{on_tokens}: a weak one is easy to match")
    known = record.result.trained_reference
    if known is None or known.difference is None:
        phrase = "not trained on the target's tokens, which may explain a gain"
        return Check(title, False, phrase)
    is_noise = within_noise(known.difference, known.difference_se)
    side = "better" if known.difference > 0 else "worse"
    phrase = f"trained on the same tokens it is {abs(known.difference):.3f} {side} than the target"
    holds = known.difference <= 0 or is_noise
    return Check(title, holds, f"{phrase}, within noise" if is_noise else phrase)
