"""Say what a target had to keep to in order to match, and what it did."""

from collections.abc import Mapping
from typing import Any

from inheritune.reporting.quantities import loss, percent
from inheritune.run_record.fields import finite_number
from inheritune.run_record.record import RunRecord

_PLAIN = {"val_loss": 0.0}  # the papers' criterion alone, which needs no remark


def limits(match: Mapping[str, Any]) -> list[str]:
    """Name each criterion of `grow.match` with its limit."""
    values = {key: finite_number(match.get(key)) for key in ("val_loss", "kl", "top1", "tasks")}
    texts = {
        "val_loss": "at most {} nats above the reference loss".format,
        "kl": "KL divergence at most {} nats".format,
        "top1": "the same likeliest token at {} of tokens or more".format,
        "tasks": "tasks at most {} below the reference's, in the mean".format,
    }
    shown = {"val_loss": loss, "kl": loss, "top1": percent, "tasks": percent}
    return [texts[key](shown[key](v)) for key, v in values.items() if v is not None]


def criteria_remark(record: RunRecord) -> str:
    """Say what counts as matched here, and which of it the target met; empty where it is plain."""
    given = {key: value for key, value in record.criteria.items() if value is not None}
    if given == _PLAIN or not given:
        return ""
    text = f"Matched means here: {'; '.join(limits(given))}."
    verdicts = record.target.criteria
    missed = [key for key in given if verdicts.get(key, "matched") != "matched"]
    if len(given) < 2 or not verdicts:
        return text
    return f"{text} {'Not met: ' + ', '.join(missed) if missed else 'All are met'}."
