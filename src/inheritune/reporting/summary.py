"""Summarize a run for the first screen: key figures, a scale of losses, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, duration, flops, loss, percent, signed
from inheritune.run_record.record import RunRecord, TrainingCost
from inheritune.run_record.trainings import TrainedModel

_MAX_MARKS = 8
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Fact:
    """One key figure."""

    title: str
    value: str  # the figure, with its unit
    details: list[str]  # lines that put it in proportion


@dataclass(frozen=True)
class ScaleMark:
    """One model on the scale of losses."""

    name: str
    kind: str  # `reference`, `target`, `scratch` or `other`: decides shape and colour
    detail: str  # layers and tokens
    value: str  # val_loss, as shown
    error: str  # its standard deviation over seeds or, with one seed, its standard error; as shown
    position: float  # in percent of the scale
    start: float  # start of the error bar, in percent
    length: float  # length of the error bar, in percent


def facts(record: RunRecord) -> list[Fact]:
    """List size, loss, cost and distance to scratch, as far as they are known."""
    figures = [_size(record), _loss(record), _cost(record), _scratch(record)]
    return [fact for fact in figures if fact]


def scale(record: RunRecord) -> tuple[list[ScaleMark], float | None]:
    """Place at most eight models on a scale of val_loss; none where there are fewer than two.

    Reference, target and same-size scratch come first. Beside the marks: the position of the
    reference loss in percent.
    """
    rows = [row for row in record.variants if row.val_loss is not None]
    reference = next((row for row in rows if row.start == "trained"), None)
    trained_here = [row for row in rows if row is not reference]
    target = next((row for row in trained_here if row.start == "inherit"), None)
    candidates: list[tuple[str, TrainedModel]] = []
    for kind, row in (
        ("reference", reference),
        ("target", target),
        ("scratch", record.scratch),
        ("other", record.equal_compute),
        *(("other", row) for row in trained_here),
    ):
        is_new = row is not None and all(row is not other for _, other in candidates)
        if row is not None and is_new and row.val_loss is not None:
            candidates.append((kind, row))
    if len(candidates) < 2:
        return [], None
    candidates = candidates[:_MAX_MARKS]
    low, high = _range([row for _, row in candidates])
    level = record.reference_loss
    line = None if level is None else 100 * (level - low) / (high - low)
    marks = [_mark(kind, row, low, high) for kind, row in candidates]
    return marks, line if line is not None and 0 <= line <= 100 else None


def missing(record: RunRecord, curves: Sequence[Curve]) -> list[str]:
    """List sentences on what the record or the metrics lack."""
    no_scratch = bool(record.rounds) and not record.scratch
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
    sentences = [sentence for sentence, is_so in lacks.items() if is_so]
    problems = [problem for curve in curves for problem in curve.problems]
    sentences.extend(f"{problem}." for problem in problems[:_MAX_PROBLEMS])
    if len(problems) > _MAX_PROBLEMS:
        sentences.append(f"{len(problems) - _MAX_PROBLEMS} more files are incomplete.")
    return sentences


def _size(record: RunRecord) -> Fact | None:
    layers, total = record.target_layers, record.reference_layers
    if not layers:
        return None
    params, reference_params = record.target.params, record.reference.params
    details = []
    if params and reference_params:
        details.append(f"{amount(params)} of {amount(reference_params)} parameters")
        details.append(f"{percent(params / reference_params)} of the reference")
    value = f"{layers:.0f} of {total:.0f}" if total else f"{layers:.0f}"
    return Fact("Layers kept", value, details)


def _loss(record: RunRecord) -> Fact | None:
    target, reached, reference_loss = record.target, record.target_loss, record.reference_loss
    if reached is None:
        if reference_loss is None:
            return None
        return Fact("Reference loss", loss(reference_loss), ["validation loss, nats per token"])
    unit = "nats per token"
    if target.val_loss_se is not None:
        unit += f" (SE {loss(target.val_loss_se)})"
    details = [unit, f"reference: {loss(reference_loss)}"]
    if target.difference is not None:
        noise = "" if target.difference_se is None else f" ± {loss(target.difference_se)}"
        details.append(f"paired difference {signed(target.difference)}{noise}")
    return Fact("Validation loss", loss(reached), details)


def _cost(record: RunRecord) -> Fact | None:
    cost = record.target_cost
    if cost.tokens is None:
        return None
    count = len(record.rounds)
    rounds = "1 round" if count == 1 else f"all {count} rounds"
    details = [f"{rounds}, {duration(cost.seconds)}", f"{flops(cost.flops)} FLOPs"]
    details.extend(_shares(cost, record.reference_cost))
    tokens = sum(entry.tokens or 0 for entry in record.paid_entries)
    if tokens > cost.tokens:
        details.append(f"{amount(tokens)} tokens with controls")
    return Fact("Cost of the target", f"{amount(cost.tokens)} tokens", details)


def _shares(cost: TrainingCost, reference: TrainingCost) -> list[str]:
    parts = []
    if cost.tokens is not None and reference.tokens:
        parts.append(f"{percent(cost.tokens / reference.tokens)} of the reference's tokens")
    if cost.flops is not None and reference.flops:
        parts.append(f"{percent(cost.flops / reference.flops)} of the reference's FLOPs")
    return parts


def _scratch(record: RunRecord) -> Fact | None:
    control, level = record.scratch, record.reference_loss
    if control.val_loss is None or level is None:
        return None
    side = "above" if control.val_loss > level else "from"
    with_tokens = f" with {amount(control.tokens)} tokens" if control.tokens else ""
    gap = record.result.gap_closed
    details = [
        f"nats {side} the reference",
        f"it reaches {loss(control.val_loss)}{with_tokens}",
        f"gap closed: {'not defined' if gap is None else percent(gap)}",
    ]
    return Fact("Scratch of the same size", signed(control.val_loss - level), details)


def _mark(kind: str, row: TrainedModel, low: float, high: float) -> ScaleMark:
    def share(nats: float) -> float:
        return round(100 * nats / (high - low), 2)

    value, error = row.val_loss or 0.0, row.spread
    detail = [f"{row.layers:.0f} layers"] if row.layers is not None else []
    detail += [f"{amount(row.tokens)} tokens"] if row.tokens is not None else []
    return ScaleMark(
        name=(row.name or "")[:60] or "unnamed",
        kind=kind,
        detail=", ".join(detail),
        value=loss(value),
        error="" if error is None else f"± {loss(error)}",
        position=share(value - low),
        start=share(value - (error or 0.0) - low),
        length=share(2 * (error or 0.0)),
    )


def _range(rows: Sequence[TrainedModel]) -> tuple[float, float]:
    ends = [(row.val_loss or 0.0) + side * (row.spread or 0.0) for row in rows for side in (-1, 1)]
    margin = 0.04 * (max(ends) - min(ends)) or 0.1
    return min(ends) - margin, max(ends) + margin
