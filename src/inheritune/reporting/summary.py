"""The first screen in figures: size, loss, cost, distance to scratch; and what is missing.

Where a run that has not ended stands: what each of its trainings has done and has left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, duration, exact, flops, loss, percent, signed
from inheritune.reporting.record import (
    Cost,
    Record,
    benchmark_of,
    equal_compute_of,
    number,
    reference_cost,
    rows,
    scratch_of,
    section,
    target_cost,
    target_of,
    text,
)

__all__ = ["Fact", "Mark", "Standing", "facts", "missing", "scale", "standing"]

_RECENT = 20  # steps


@dataclass(frozen=True)
class Standing:
    """One training that has not ended.

    Attributes:
        label: Name, round and layers.
        share: Of its tokens that it has done, in [0, 1]; None when their number is not known.
        lines: What it has reached, as sentences without a full stop.
    """

    label: str
    share: float | None
    lines: list[str]


def standing(record: Record, curves: Sequence[Curve]) -> list[Standing]:
    """Every training that has begun and is not recorded as ended; none once there is a result."""
    if section(record, "result"):
        return []
    begun = [c for c in curves if not c.recorded and (c.points or c.course.steps)]
    return [_standing(record, curve) for curve in begun]


def _standing(record: Record, curve: Curve) -> Standing:
    course = curve.course
    done = course.tokens[-1] if course.tokens else float(curve.points[-1][0])
    planned = _planned(record, curve)
    share = None if not planned else min(1.0, done / planned)
    of = f" of {amount(planned)}" if planned else ""
    part = "" if share is None else f" ({percent(share)})"
    lines = [f"{amount(done)}{of} tokens{part}"]
    if course.steps:
        lines.append(f"step {exact(course.steps[-1])}, training loss {loss(_mean(course.losses))}")
    if curve.points:
        against = benchmark_of(record)
        beside = "" if against is None else f" against the benchmark {loss(against)}"
        lines.append(f"val_loss {loss(curve.points[-1][1])}{beside}")
    speed = _mean(course.speeds)
    if speed:
        left = None if planned is None else max(0.0, planned - done) / speed
        lines.append(
            f"{exact(speed)} tokens/s" + ("" if left is None else f", {duration(left)} left")
        )
    return Standing(curve.label, share, lines)


def _planned(record: Record, curve: Curve) -> float | None:
    recipe = section(record, "recipe")
    own = number(section(section(recipe, "variants"), curve.variant), "tokens")
    if own is not None:
        return own
    if section(section(recipe, "variants"), curve.variant).get("tokens") is not None:
        return None  # such as equal_compute: known only when it begins
    return number(section(recipe, "train"), "tokens")


def _mean(values: Sequence[float]) -> float | None:
    recent = [value for value in values[-_RECENT:] if math.isfinite(value)]
    return sum(recent) / len(recent) if recent else None


@dataclass(frozen=True)
class Fact:
    """One figure of the first screen.

    Attributes:
        title: What it is.
        value: The figure, with unit.
        details: Lines that put it in proportion.
    """

    title: str
    value: str
    details: list[str]


@dataclass(frozen=True)
class Mark:
    """One model on the scale of losses.

    Attributes:
        name: Its name.
        kind: ``reference``, ``target``, ``scratch`` or ``other``: decides shape and colour.
        detail: Layers and tokens.
        value: val_loss, as shown.
        error: Its standard deviation over seeds or, of one seed, its standard error; or nothing.
        position: Of the mark, in percent of the scale.
        start: Of the whisker of one `error`, in percent.
        length: Of the whisker, in percent.
    """

    name: str
    kind: str
    detail: str
    value: str
    error: str
    position: float
    start: float
    length: float


def facts(record: Record) -> list[Fact]:
    """Size, loss, cost and distance to scratch, as far as they are known."""
    found = [_size(record), _reached(record), _cost(record), _scratch(record)]
    return [fact for fact in found if fact]


def scale(record: Record) -> tuple[list[Mark], float | None]:
    """The models on one scale of val_loss.

    Returns:
        At most eight marks (reference, target and same-size scratch first), and the benchmark's
        position in percent; no marks with fewer than two models.
    """
    rest = [row for row in rows(record, "variants") if number(row, "val_loss") is not None]
    chosen: list[tuple[str, dict[str, Any]]] = []
    reference = next((row for row in rest if row.get("start") == "trained"), None)
    target = next((row for row in rest if row.get("start") == "inherit"), None)
    control, equal = scratch_of(record), equal_compute_of(record)
    for kind, row in (
        ("reference", reference),
        ("target", target),
        ("scratch", control),
        ("other", equal),
        *(("other", row) for row in rest),
    ):
        fresh = row and number(row, "val_loss") is not None and all(row is not r for _, r in chosen)
        if row and fresh:
            chosen.append((kind, row))
    if len(chosen) < 2:
        return [], None
    chosen = chosen[:8]
    low, high = _reach([row for _, row in chosen])
    benchmark = benchmark_of(record)
    line = None if benchmark is None else 100 * (benchmark - low) / (high - low)
    marks = [_mark(kind, row, low, high) for kind, row in chosen]
    return marks, line if line is not None and 0 <= line <= 100 else None


def missing(record: Record, curves: Sequence[Curve]) -> list[str]:
    """Sentences on what the record or the metrics lack."""
    found = []
    for key, sentence in (
        ("reference", "Nothing is recorded about the reference."),
        ("tokens", "Nothing is recorded about the text."),
        ("benchmark", "The benchmark was not measured."),
    ):
        if not section(record, key):
            found.append(sentence)
    if not rows(record, "rounds"):
        found.append("No round of the target has ended.")
    elif not scratch_of(record):
        found.append("No same-size scratch control has been trained.")
    if not section(record, "result"):
        found.append("There is no result.")
    if not rows(record, "ledger"):
        found.append("The ledger is empty.")
    if not any(curve.points for curve in curves):
        found.append("No validation loss of a training has been recorded.")
    if not rows(record, "samples"):
        found.append("No samples have been generated.")
    problems = [problem for curve in curves for problem in curve.problems]
    found.extend(f"{problem}." for problem in problems[:20])
    if len(problems) > 20:
        found.append(f"{len(problems) - 20} more files are incomplete.")
    return found


def _size(record: Record) -> Fact | None:
    last, reference = target_of(record), section(record, "reference")
    layers = number(section(record, "result"), "layers") or number(last, "layers")
    total = number(reference, "layers") or number(section(record, "result"), "reference_layers")
    if not layers:
        return None
    params, of = number(last, "params"), number(reference, "params")
    details = []
    if params and of:
        details.append(f"{amount(params)} of {amount(of)} parameters")
        details.append(f"{percent(params / of)} of the reference")
    return Fact(
        "Layers kept", f"{layers:.0f} of {total:.0f}" if total else f"{layers:.0f}", details
    )


def _reached(record: Record) -> Fact | None:
    last, benchmark = target_of(record), benchmark_of(record)
    reached = number(section(record, "result"), "val_loss") or number(last, "val_loss")
    if reached is None:
        if benchmark is None:
            return None
        return Fact("Benchmark", loss(benchmark), ["the reference's validation loss, in nats"])
    error = number(last, "val_loss_se")
    details = [f"reference: {loss(benchmark)}"]
    difference, paired = number(last, "difference"), number(last, "difference_se")
    if difference is not None:
        noise = "" if paired is None else f" ± {loss(paired)}"
        details.append(f"paired difference {signed(difference)}{noise}")
    unit = "nats per token" + ("" if error is None else f" (SE {loss(error)})")
    return Fact("Validation loss", loss(reached), [unit, *details])


def _cost(record: Record) -> Fact | None:
    spent, reference = target_cost(record), reference_cost(record)
    if spent.tokens is None:
        return None
    rounds = "1 round" if spent.rounds == 1 else f"all {spent.rounds} rounds"
    details = [f"{rounds}, {duration(spent.seconds)}", f"{flops(spent.flops)} FLOPs"]
    details.extend(_shares(spent, reference))
    here = [row for row in rows(record, "ledger") if not row.get("borrowed")]
    tokens = sum(number(row, "tokens") or 0 for row in here)
    if tokens > spent.tokens:
        details.append(f"{amount(tokens)} tokens with controls")
    return Fact("Cost of the target", f"{amount(spent.tokens)} tokens", details)


def _shares(spent: Cost, reference: Cost) -> list[str]:
    parts = []
    if spent.tokens is not None and reference.tokens:
        parts.append(f"{percent(spent.tokens / reference.tokens)} of the reference's tokens")
    if spent.flops is not None and reference.flops:
        parts.append(f"{percent(spent.flops / reference.flops)} of the reference's FLOPs")
    return parts


def _scratch(record: Record) -> Fact | None:
    control, benchmark = scratch_of(record), benchmark_of(record)
    reached = number(control, "val_loss")
    if reached is None or benchmark is None:
        return None
    side = "above" if reached > benchmark else "from"
    tokens = number(control, "tokens")
    spent = f" with {amount(tokens)} tokens" if tokens else ""
    details = [f"nats {side} the reference", f"it reaches {loss(reached)}{spent}"]
    closed = number(section(record, "result"), "gap_closed")
    details.append("gap closed: " + ("not defined" if closed is None else percent(closed)))
    return Fact("Scratch of the same size", signed(reached - benchmark), details)


def _mark(kind: str, row: dict[str, Any], low: float, high: float) -> Mark:
    value, error = number(row, "val_loss") or 0.0, _error(row)
    layers, tokens = number(row, "layers"), number(row, "tokens")
    detail = [f"{layers:.0f} layers"] if layers is not None else []
    detail += [f"{amount(tokens)} tokens"] if tokens is not None else []
    spread = error or 0.0
    return Mark(
        text(row, "name")[:60] or "unnamed",
        kind,
        ", ".join(detail),
        loss(value),
        "" if error is None else f"± {loss(error)}",
        round(100 * (value - low) / (high - low), 2),
        round(100 * (value - spread - low) / (high - low), 2),
        round(200 * spread / (high - low), 2),
    )


def _error(row: dict[str, Any]) -> float | None:
    spread = number(row, "val_loss_sd")
    return number(row, "val_loss_se") if spread is None else spread


def _reach(chosen: list[dict[str, Any]]) -> tuple[float, float]:
    values = [
        (number(row, "val_loss") or 0.0) + side * (_error(row) or 0.0)
        for row in chosen
        for side in (-1, 1)
    ]
    margin = 0.04 * (max(values) - min(values)) or 0.1
    return min(values) - margin, max(values) + margin
