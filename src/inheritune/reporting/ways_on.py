"""Estimate the ways on from a run that missed: more layers, more tokens, distillation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.values import safe_name
from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, exact, flops, percent
from inheritune.run_record.record import RunRecord

# A validation counts as one at half of the tokens when it lies between these shares of them.
_NEAR_HALF = (0.4, 0.6)


@dataclass(frozen=True)
class Way:
    """One way on from a target that has not matched."""

    name: str  # such as "more layers, 6 of 8"
    sets: list[str]  # overrides of the recipe, KEY=VALUE
    gain: float | None  # estimated fall of val_loss, nats per token; None where nothing tells it
    flops: float | None  # of training the target that way
    basis: str  # what the estimate rests on, or what it lacks

    @property
    def nats_per_flop(self) -> float:
        """How much a FLOP brings; 0 where it is not known."""
        return max(self.gain, 0.0) / self.flops if self.gain is not None and self.flops else 0.0


def ways_on(record: RunRecord, curves: Sequence[Curve]) -> list[Way]:
    """List the ways on from a finished run whose target has not matched.

    Returns:
        Those that bring most per FLOP first; those that the run has no number for last.
    """
    if not record.rounds or record.rounds[-1].tokens is None:
        return []
    ways = [_more_layers(record), _more_tokens(record, curves), _distillation(record)]
    return sorted((way for way in ways if way), key=lambda way: -way.nats_per_flop)


def describe_way(way: Way, gap: float | None) -> str:
    """Say in one sentence what a way is estimated to bring, what it costs, and why.

    Args:
        gap: val_loss of the target minus what would match, nats per token.
    """
    cost = "" if way.flops is None else f" for about {flops(way.flops)} FLOPs"
    if way.gain is None or not gap:
        return f"{way.name}{cost}: not estimated, {way.basis}"
    share = "nothing" if way.gain <= 0 else f"about {percent(min(way.gain / gap, 1.0))} of the gap"
    return f"{way.name}: closes {share}{cost}, {way.basis}"


def gap_to_match(record: RunRecord) -> float | None:
    """Nats per token by which the last round missed."""
    difference = record.rounds[-1].difference if record.rounds else None
    return None if difference is None else difference - (record.tolerance or 0.0)


def _more_layers(record: RunRecord) -> Way | None:
    grow, last, total = record.recipe_section("grow"), record.rounds[-1], record.reference_layers
    layers, gap = last.layers, gap_to_match(record)
    if layers is None or not total or layers >= total:
        return None
    # --- the limits that ended growth; without any, there is no larger size that is safe to cut ---
    more = min(layers + (grow.get("add") or 1), total)
    sets = []
    if grow.get("max_layers") and grow["max_layers"] < more:
        sets.append(f"grow.max_layers={more:.0f}")
    if grow.get("max_rounds") and len(record.rounds) >= grow["max_rounds"]:
        sets.append(f"grow.max_rounds={len(record.rounds) + 1}")
    if not sets:
        return None
    # --- nats per layer ---
    per_layer, basis = None, "the run has no difference from the reference"
    known = [
        (row.layers, row.difference)
        for row in record.rounds
        if row.layers is not None and row.difference is not None
    ]
    falls = [
        (before - now) / (larger - smaller)
        for (smaller, before), (larger, now) in pairwise(known)
        if larger > smaller
    ]
    if falls and falls[-1] > 0:
        per_layer, basis = falls[-1], "as the last round brought per layer"
    elif gap is not None:
        per_layer = gap / (total - layers)
        basis = "on a straight line to the reference, which has all layers"
    return Way(
        name=f"more layers, {more:.0f} of {exact(total)}",
        sets=sets,
        gain=None if per_layer is None else per_layer * (more - layers),
        flops=None if last.flops is None else last.flops * more / layers,
        basis=basis,
    )


def _more_tokens(record: RunRecord, curves: Sequence[Curve]) -> Way:
    last, target = record.rounds[-1], record.target_name
    assert last.tokens is not None
    tokens = int(2 * last.tokens)
    planned = record.recipe_section("variants").get(target) or {}
    key = "train.tokens" if planned.get("tokens") is None else f"{_variant(target)}.tokens"
    sets = [f"{key}={tokens}", *_new_run(record, "2x-tokens")]
    if (record.tokens.train_tokens or 0) < tokens:
        if record.recipe_section("data").get("tokens") is not None:
            sets.append(f"data.tokens={tokens}")
        sets.append("data.allow_repeat=true")
    gain, basis = None, "no validation near half of the tokens tells: lower train.eval_every"
    rounds = [curve for curve in curves if curve.round == len(record.rounds)]
    points = rounds[0].points if rounds else []
    shares = [(count / last.tokens, loss) for count, loss in points]
    halves = [pair for pair in shares if _NEAR_HALF[0] <= pair[0] <= _NEAR_HALF[1]]
    if halves:
        share, loss = min(halves, key=lambda pair: abs(pair[0] - 0.5))
        gain = loss - points[-1][1]
        basis = f"as much as the last {percent(1 - share)} of the tokens brought"
    return Way(
        name=f"more tokens, {amount(tokens)} instead of {amount(last.tokens)}",
        sets=sets,
        gain=gain,
        flops=None if last.flops is None else 2 * last.flops,
        basis=basis,
    )


def _distillation(record: RunRecord) -> Way | None:
    last = record.rounds[-1]
    if last.distill:
        return None
    distilled = [
        row
        for row in record.variants
        if row.distill and row.start == "inherit" and row.val_loss is not None
        if (row.layers, row.tokens) == (last.layers, last.tokens)
    ]
    gain, basis = None, "since no variant of this run was distilled at this size"
    if distilled and last.val_loss is not None:
        gain = last.val_loss - min(row.val_loss or 0.0 for row in distilled)
        basis = f"as {distilled[0].name} of this run shows"
    # A forward pass of the reference for every token: a third of training it.
    forward = _reference_flops(record)
    cost = None if last.flops is None or forward is None else last.flops + forward
    sets = [f"{_variant(record.target_name)}.distill={{}}", *_new_run(record, "distilled")]
    return Way("distillation from the reference", sets, gain, cost, basis)


def _reference_flops(record: RunRecord) -> float | None:
    last = record.rounds[-1]
    if last.flops is None or not last.layers or not record.reference_layers:
        return None
    return last.flops * EVALUATION_SHARE * record.reference_layers / last.layers


def _new_run(record: RunRecord, suffix: str) -> list[str]:
    """A run of its own: finished trainings are never repeated with other tokens or losses."""
    layers = record.rounds[-1].layers
    name = safe_name(f"{(record.name or 'run')[:80]}-{suffix}")
    return [f"name={name}", *([] if layers is None else [f"inherit.layers={layers:.0f}"])]


def _variant(name: str) -> str:
    return f'variants."{name}"' if "." in name else f"variants.{name}"
