"""Estimate the ways on from a run that missed: more layers, more tokens, distillation, fp32."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inheritune.model_files.flops import EVALUATION_SHARE
from inheritune.recipe.values import safe_name
from inheritune.reporting.curves import Curve
from inheritune.reporting.quantities import amount, exact, flops, percent
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel
from inheritune.surgery.selection import way_of

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
    if (unrounded := _unrounded(record)) is not None:
        return [unrounded]
    ways = [_more_layers(record), _more_tokens(record, curves), _distillation(record)]
    return sorted((way for way in ways if way), key=lambda way: -way.nats_per_flop)


def describe_way(way: Way, gap: float | None) -> str:
    """Say in one sentence what a way is estimated to bring, what it costs, and why.

    Args:
        gap: val_loss of the target minus what would match, nats per token; None or below 0 where
            it is another criterion that missed.
    """
    cost = "" if way.flops is None else f" for about {flops(way.flops)} FLOPs"
    if way.gain is None:
        return f"{way.name}{cost}: not estimated, {way.basis}"
    if gap is None or gap <= 0:
        return f"{way.name}{cost}: lowers val_loss by about {max(way.gain, 0):.3f}, {way.basis}"
    share = "nothing" if way.gain <= 0 else f"about {percent(min(way.gain / gap, 1.0))} of the gap"
    return f"{way.name}: closes {share}{cost}, {way.basis}"


def gap_to_match(record: RunRecord) -> float | None:
    """Nats per token by which the last round missed; None: val_loss is no criterion of the run."""
    difference = record.rounds[-1].difference if record.rounds else None
    if difference is None or record.tolerance is None:
        return None
    return difference - record.tolerance


def _unrounded(record: RunRecord) -> Way | None:
    """Publish fp32 weights: the one way on where rounding alone keeps the target from matching."""
    last, gap = record.rounds[-1], gap_to_match(record)
    others = [name for name in last.criteria if name != "val_loss"]
    is_missed_otherwise = "not_matched" in [last.criteria[name] for name in others]
    if not _is_moved_by_rounding(last) or gap is None or is_missed_otherwise:
        return None
    rounding = (last.val_loss or 0.0) - (last.fp32_val_loss or 0.0)
    if gap - rounding > 0:
        return None
    sets = ["target.dtype=fp32", *_new_run(record, "fp32")]
    basis = f"since the weights match before rounding, which adds {rounding:.4f} nats"
    return Way("fp32 weights in the published model", sets, None, last.flops, basis)


def _is_moved_by_rounding(last: TrainedModel) -> bool:
    """As `TrainingResult.is_moved_by_rounding`."""
    if last.val_loss is None or last.fp32_val_loss is None or last.val_loss_se is None:
        return False
    return last.val_loss - last.fp32_val_loss > last.val_loss_se


def _more_layers(record: RunRecord) -> Way | None:
    last, total = record.rounds[-1], record.reference_layers
    layers, gap = last.layers, last.difference
    if layers is None or not total:
        return None
    more = _next_size(record, layers, total)
    if more is None:
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
        sets=_growth_to(record, more),
        gain=None if per_layer is None else per_layer * (more - layers),
        flops=None if last.flops is None else last.flops * more / layers,
        basis=basis,
    )


def _next_size(record: RunRecord, layers: float, total: float) -> float | None:
    """The next size that is safe to cut and has fewer layers than the reference, if any."""
    sizes = record.reference.safe_layers or range(1, int(total))  # older runs do not tell
    larger = [size for size in sizes if layers < size < total]
    step = record.recipe_section("grow").get("add") or 1
    return next((size for size in larger if size >= layers + step), max(larger, default=None))


def _growth_to(record: RunRecord, more: float) -> list[str]:
    """The overrides with which the run grows once more, to ``more`` layers."""
    grow = record.recipe_section("grow")
    if grow.get("search") == "bisect":  # other limits would give it another course
        return _new_run(record, f"{more:.0f}-layers", more)
    add = [] if grow.get("add") else ["grow.add=1"]
    return [*add, f"grow.max_layers={more:.0f}", f"grow.max_rounds={len(record.rounds) + 1}"]


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


def _new_run(record: RunRecord, suffix: str, layers: float | None = None) -> list[str]:
    """A run of its own: finished trainings are never repeated with other tokens or losses.

    Args:
        layers: Layers that it begins with; None: as many as this run ended with.
    """
    layers = layers or record.rounds[-1].layers
    run_name = (record.name or "run")[:80]
    name = f"name={safe_name(f'{run_name}-{suffix}')}"
    select = record.recipe_section("inherit").get("select")
    states_layers = isinstance(select, str) and any(letter.isdigit() for letter in select)
    if layers is None or (states_layers and layers == record.rounds[0].layers):
        return [name]
    if not states_layers:
        return [name, f"inherit.layers={layers:.0f}"]
    way = way_of(select)
    # A list of layers is for one number of them.
    return (
        [name] if way is None else [name, f"inherit.select={way}", f"inherit.layers={layers:.0f}"]
    )


def _variant(name: str) -> str:
    return f'variants."{name}"' if "." in name else f"variants.{name}"
