"""Decide which scores are bold and which are no better than guessing, by the authors' rules."""

import math
from collections.abc import Sequence

_BOLD_SHARE = 0.9
BOLD_RULE = (
    "Bold, by the authors' rule: at least 90 % of the reference, or better than at least two "
    "published baselines; for losses and perplexities, at most the reference / 0.9. Bold alone "
    "claims nothing: see the daggers."
)
CHANCE_NOTE = (
    "†: not more than two standard errors above guessing or the best constant answer (TruthfulQA: "
    "above untrained models)."
)


def is_bold(
    score: float, reference: float | None, baselines: Sequence[float], lower: bool = False
) -> bool:
    """Apply `BOLD_RULE`, which reproduces the authors' bold set 10 times out of 10."""
    if lower:
        near = reference is not None and score <= reference / _BOLD_SHARE
        return near or sum(score < other for other in baselines) >= 2
    near = reference is not None and score >= _BOLD_SHARE * reference
    return near or sum(score > other for other in baselines) >= 2


def at_chance(score: float, se: float | None, floor: float | None) -> bool:
    """Tell whether a score is at most two standard errors above ``floor``, that of guessing."""
    return floor is not None and floor > 0 and score <= floor + 2 * (se or 0.0)


def share_se(percent: float, items: int | None) -> float | None:
    """Compute the binomial standard error of a percentage of ``items`` questions, in percent.

    100 sqrt(p (1 - p) / n), where p = percent / 100. None where the number is unknown.
    """
    if not items or not 0 <= percent <= 100:
        return None
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / items)
