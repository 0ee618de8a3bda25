"""Summarize a run for the first screen: four key figures, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.model_files.layers import ranges
from inheritune.reporting.curves import Curve
from inheritune.reporting.gains_table import GENERATING, gain_ratios, gained_words
from inheritune.reporting.quantities import amount, duration, loss, percent, signed
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import GAINS_STAGE

_MAX_PROBLEMS = 20
_MAX_RANGES = 6  # of layers that are left out


@dataclass(frozen=True)
class Fact:
    """One key figure."""

    title: str
    value: str  # the figure, with its unit
    details: list[str]  # lines that put it in proportion


def facts(record: RunRecord) -> list[Fact]:
    """List what was kept, the loss, what was gained and the cost, as far as they are known."""
    figures = [_kept(record), _loss(record), _gained(record), _cost(record)]
    return [fact for fact in figures if fact]


def missing(record: RunRecord, curves: Sequence[Curve]) -> list[str]:
    """List what the record of a run that no longer runs lacks, and metrics that cannot be read."""
    no_scratch = bool(record.rounds) and not record.fresh_control
    lacks = {
        "Nothing is recorded about the reference.": not record.reference,
        "Nothing is recorded about the text.": not record.tokens,
        "The reference loss was not measured.": not record.benchmark,
        "No round of the target has ended.": not record.rounds,
        "No scratch control of the same size has been trained.": no_scratch,
        "There is no result.": not record.result,
        "The ledger is empty.": not record.ledger,
        "No validation loss of a training has been recorded.": not any(c.points for c in curves),
        "No samples have been generated.": not record.samples,
    }
    running = record.status in ("starting", "running")
    sentences = [sentence for sentence, is_so in lacks.items() if is_so and not running]
    problems = [problem for curve in curves for problem in curve.problems]
    sentences.extend(f"{problem}." for problem in problems[:_MAX_PROBLEMS])
    if len(problems) > _MAX_PROBLEMS:
        sentences.append(f"{len(problems) - _MAX_PROBLEMS} more files are incomplete.")
    return sentences


def _kept(record: RunRecord) -> Fact | None:
    layers, total = record.target_layers, record.reference_layers
    if not layers:
        return None
    params, reference_params = record.target.params, record.reference.params
    details = []
    if params and reference_params:
        details.append(f"{amount(params)} of {amount(reference_params)} parameters")
        details.append(f"{percent(params / reference_params)} of the reference")
    if total and (left_out := _left_out(record, int(total))):
        details.insert(0, left_out)
    value = f"{layers:.0f} of {total:.0f} layers" if total else f"{layers:.0f} layers"
    return Fact("Kept", value, details)


def _left_out(record: RunRecord, total: int) -> str:
    """Name the layers that the target does not have; empty where that is not known."""
    target, selection = record.target, record.selection
    # Older runs say it of layers that were chosen by scores.
    chosen = [] if selection is None else selection.inherited
    of_target = record.target_name, target.layers
    older = (row.kept for row in chosen if (row.name, row.layers) == of_target)
    kept = target.kept or next(older, [])
    missing_layers = sorted({*range(total)} - {int(layer) for layer in kept})
    if not kept or not missing_layers:
        return ""
    names = ranges(missing_layers)
    listed = ", ".join(names[:_MAX_RANGES]) + (", …" if len(names) > _MAX_RANGES else "")
    return f"without layer{'s' * (len(missing_layers) > 1)} {listed} (counted from 0)"


def _loss(record: RunRecord) -> Fact | None:
    target, reached, reference_loss = record.target, record.target_loss, record.reference_loss
    if reached is None:
        if reference_loss is None:
            return None
        return Fact("Reference loss", loss(reference_loss), ["val_loss, nats per token"])
    details = [f"nats per token; reference {loss(reference_loss)}"]
    if target.difference is not None:
        noise = "" if target.difference_se is None else f" ± {loss(target.difference_se)}"
        details.append(f"difference {signed(target.difference)}{noise}, window by window")
    return Fact("Loss", loss(reached), details)


def _gained(record: RunRecord) -> Fact | None:
    """Name the gain in speed where it was measured, else in size; below it, that over scratch."""
    words = gained_words(record)
    if not words:
        return None
    ratios = [] if record.gains is None else gain_ratios(record.gains)
    details = [f"{percent(ratio)} {what}" for what, ratio in ratios if what.startswith("of")]
    value = words[0].removesuffix(f" {GENERATING}")
    if value != words[0]:
        details.insert(0, GENERATING)
    else:
        is_to_come = record.status == "running" and any(
            stage.name == GAINS_STAGE and stage.seconds is None for stage in record.stages
        )
        details = ["speed is still to be measured" if is_to_come else "speed was not measured"]
    scratch, reached = record.fresh_control.val_loss, record.target_loss
    if scratch is not None and reached is not None:
        side = "better" if scratch >= reached else "worse"
        spent = "" if record.scratch else " of equal compute"
        details.append(f"{abs(scratch - reached):.3f} nats {side} than scratch{spent}")
    return Fact("Gained", value, details)


def _cost(record: RunRecord) -> Fact | None:
    cost, reference = record.target_cost, record.reference_cost
    if cost.tokens is None:
        return None
    count = len(record.rounds)
    rounds = "1 round" if count == 1 else f"all {count} rounds"
    details = [f"{rounds}, {duration(cost.seconds)}"]
    if reference.tokens:
        details.append(f"{percent(cost.tokens / reference.tokens)} of the reference's tokens")
    if cost.flops is not None and reference.flops:
        details.append(f"{percent(cost.flops / reference.flops)} of the reference's FLOPs")
    tokens = sum(entry.tokens or 0 for entry in record.paid_entries)
    if tokens > cost.tokens:
        details.append(f"{amount(tokens)} tokens with controls, trained to compare")
    return Fact("Cost", f"{amount(cost.tokens)} tokens", details)
