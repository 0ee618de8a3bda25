"""A run as lines of text, for a terminal far away."""

from dataclasses import dataclass
from pathlib import Path

from inheritune.errors import DataError
from inheritune.reporting.curves import read_curves
from inheritune.reporting.embed import presentable
from inheritune.reporting.quantities import amount, duration, loss, signed
from inheritune.reporting.record import Record, benchmark_of, number, read_record, rows, text
from inheritune.reporting.summary import Standing, standing
from inheritune.reporting.verdict import outcome, verdict

__all__ = ["Status", "status_of"]

_BAR = 24  # characters


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        outcome: ``matched``, ``matched_within_noise``, ``not_matched``, ``failed`` or
            ``unfinished``.
        ended: Whether nothing more is to be expected unless the run is started again.
        lines: The same for people, none longer than needed.
    """

    outcome: str
    ended: bool
    lines: list[str]


def status_of(root: Path) -> Status:
    """Read where a run stands; a directory that holds no run yet says so."""
    try:
        record = presentable(read_record(root))
    except DataError as error:
        return Status("unfinished", False, [error.message])
    lines = [f"{_plain(text(record, 'name')) or root.name}: {_plain(text(record, 'status'))}"]
    lines += ["", _plain(verdict(record)), ""]
    benchmark = benchmark_of(record)
    if benchmark is not None:
        lines.append(f"benchmark  {loss(benchmark)} nats per token")
    for row in rows(record, "rounds"):
        which = f"round {number(row, 'round') or 0:.0f}, {number(row, 'layers') or 0:.0f} layers"
        lines.append(
            f"{which}: val_loss {loss(number(row, 'val_loss'))} "
            f"({signed(number(row, 'difference'))}), {amount(number(row, 'tokens'))} tokens, "
            f"{duration(number(row, 'seconds'))}"
        )
    for training in standing(record, read_curves(root, record)):
        lines += ["", *_training(training)]
    return Status(outcome(record), _ended(record), lines)


def _training(training: Standing) -> list[str]:
    lines = [_plain(training.label)]
    if training.share is not None:
        done = round(_BAR * training.share)
        lines.append(f"  [{'#' * done}{'.' * (_BAR - done)}] {training.share:.0%}")
    return [*lines, *(f"  {line}" for line in training.lines)]


def _ended(record: Record) -> bool:
    return record.get("status") in ("done", "failed")


def _plain(value: str) -> str:
    """On one line, without what a terminal would take for a command."""
    return "".join(sign if sign.isprintable() else " " for sign in value)[:1000]
