"""Summarize a run as lines of text, for a terminal far away."""

from dataclasses import dataclass
from pathlib import Path

from inheritune.errors import DataError
from inheritune.reporting.curves import read_curves
from inheritune.reporting.embed import presentable
from inheritune.reporting.progress import TrainingProgress, stage_states, trainings_in_progress
from inheritune.reporting.quantities import amount, duration, loss, signed
from inheritune.reporting.verdict import verdict
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord, read_run_json
from inheritune.run_record.trainings import TrainedModel

_BAR_WIDTH = 24  # characters
_TICKS = {"done": "✓", "now": ">", "later": "·"}


@dataclass(frozen=True)
class Status:
    """The state of a run."""

    outcome: str  # as `RunRecord.outcome`
    ended: bool  # nothing more will happen unless the run is started again
    lines: list[str]


def status_of(root: Path) -> Status:
    """Read the state of a run. The lines say so if the directory holds no run yet."""
    try:
        run = Run.open(root)
        record = RunRecord.model_validate(presentable(read_run_json(root)))
    except DataError as error:
        lines = [f"{_plain(root.name)}: starting", "", verdict(RunRecord(status="starting"))]
        if Run(root).record_file.exists():
            lines.append(error.message)
        return Status("unfinished", False, lines)
    is_abandoned = record.status == "running" and run.is_abandoned()
    if is_abandoned:
        record = record.model_copy(update={"status": "interrupted"})
    lines = [f"{_plain(record.name or '') or root.name}: {_plain(record.status or '')}"]
    if is_abandoned:
        lines.append("Its process was killed, so nobody works on it. Run the recipe again.")
    lines += ["", _plain(verdict(record)), ""]
    if record.reference_loss is not None:
        lines.append(f"reference loss  {loss(record.reference_loss)} nats per token")
    lines += map(_round_line, record.rounds)
    stages = stage_states(record)
    width = max((len(_plain(stage.name)) for stage in stages), default=0)
    for stage in stages:
        lines.append(f"{_TICKS[stage.state]} {_plain(stage.name):<{width}}  {stage.detail}")
    for training in trainings_in_progress(record, read_curves(root, record)):
        lines += ["", *_progress_lines(training)]
    return Status(record.outcome, record.status in ("done", "failed", "interrupted"), lines)


def _round_line(row: TrainedModel) -> str:
    return (
        f"round {row.round or 0:.0f}, {row.layers or 0:.0f} layers: val_loss {loss(row.val_loss)} "
        f"({signed(row.difference)}), {amount(row.tokens)} tokens, {duration(row.seconds)}"
    )


def _progress_lines(training: TrainingProgress) -> list[str]:
    lines = [_plain(training.label)]
    if training.share is not None:
        done = round(_BAR_WIDTH * training.share)
        lines.append(f"  [{'#' * done}{'.' * (_BAR_WIDTH - done)}] {training.share:.0%}")
    return [*lines, *(f"  {line}" for line in training.lines)]


def _plain(value: str) -> str:
    """Put a text on one line, without control characters that a terminal would act on."""
    return "".join(sign if sign.isprintable() else " " for sign in value)[:1000]
