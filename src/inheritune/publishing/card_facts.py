"""List on a model card what the target is: size, format, speed, loss and scores."""

from collections.abc import Mapping
from typing import Any

from inheritune.publishing.card_metadata import TaskScore
from inheritune.reporting.gains_table import gain_ratios
from inheritune.reporting.quantities import (
    amount,
    data_size,
    exact,
    formatted,
    loss,
    percent,
    signed,
)
from inheritune.run_record.record import RunRecord

# Names of the longest sequence in the configs of different families.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_MOST_SCORES = 6  # in the table of facts; the card has all of them further down


def card_facts(
    record: RunRecord, config: Mapping[str, Any], scores: list[TaskScore]
) -> list[tuple[str, str]]:
    """List facts as names and values, as far as they are known.

    Args:
        config: config.json of the target; any field may be missing or wrong.
        scores: Task scores of the target.
    """
    facts = {
        "layers": _layers(record),
        "parameters": _parameters(record),
        "weights": _weights(record),
        "context": _context(config),
        "speed": _speed(record),
        "loss": _loss(record),
        "gap to the base model": _gap(record),
        "tasks": _tasks(scores),
    }
    return [(name, value) for name, value in facts.items() if value]


def _layers(record: RunRecord) -> str:
    layers, total = record.target_layers, record.reference_layers
    return f"{layers:.0f} of {total:.0f}" if layers and total else ""


def _parameters(record: RunRecord) -> str:
    params, reference = record.target.params, record.reference.params
    if not params:
        return ""
    share = f", {percent(params / reference)} of the base model's" if reference else ""
    return f"{amount(params)}{share}"


def _weights(record: RunRecord) -> str:
    size = record.target.bytes
    known = [data_size(size) if size else "", record.target.dtype or ""]
    return ", ".join(filter(None, known))


def _context(config: Mapping[str, Any]) -> str:
    lengths = [config.get(key) for key in _CONTEXT_KEYS]
    length = next((value for value in lengths if type(value) is int and value > 0), None)
    return "" if length is None else f"{exact(length)} tokens"


def _speed(record: RunRecord) -> str:
    if record.gains is None:
        return ""
    speed = dict(gain_ratios(record.gains)).get("times the decode speed")
    new = record.gains.models[-1].decode.median if record.gains.models else None
    if speed is None or new is None:
        return ""
    device = f" on {record.gains.device}" if record.gains.device else ""
    return f"{speed:.2f} × the base model's: {formatted('.3g')(new)} new tokens/s{device}"


def _loss(record: RunRecord) -> str:
    if record.target_loss is None:
        return ""
    beside = "" if record.reference_loss is None else f"; base model {loss(record.reference_loss)}"
    return f"{loss(record.target_loss)} nats per held-out token{beside}"


def _gap(record: RunRecord) -> str:
    reached, level, target = record.target_loss, record.reference_loss, record.target
    if reached is None or level is None:
        return ""
    difference = reached - level if target.difference is None else target.difference
    error = "" if target.difference_se is None else f" ± {loss(target.difference_se)}"
    closed = record.result.gap_closed
    share = "" if closed is None else f"; {percent(closed)} of the gap from scratch closed"
    return f"{signed(difference)}{error} nats{share}"


def _tasks(scores: list[TaskScore]) -> str:
    if not scores:
        return "none evaluated"
    shown = [f"{score.task} {score.metric} {score.value:.4g}" for score in scores[:_MOST_SCORES]]
    more = len(scores) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
