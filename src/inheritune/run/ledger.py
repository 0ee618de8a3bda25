"""Count what a run cost and what it came to."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inheritune.recipe.schema import Cost, Recipe
from inheritune.run.derive import Outcome, judge
from inheritune.run_record.trainings import (
    LedgerEntry,
    PriceRecord,
    Result,
    TrainedModel,
    TrainedReferenceRecord,
)
from inheritune.steps.benchmark import Benchmark
from inheritune.steps.gains import MeasuredGains
from inheritune.steps.method import method_of
from inheritune.steps.result import TrainingResult
from inheritune.steps.seeds import Repeated, together
from inheritune.steps.selection import selection_cost

# A gap smaller than this many of its standard errors is not worth dividing by.
_MIN_GAP_IN_SE = 3.0

_SHORT_ROW = (
    *("name", "start", "layers", "params", "tokens"),
    *("val_loss", "val_loss_se", "val_loss_sd", "num_seeds"),
)


def ledger(outcome: Outcome, cost: Cost, gains: MeasuredGains | None = None) -> list[LedgerEntry]:
    """List every cost of a run: reference, reference loss, each round, control, repeat and gains.

    Rounds that were thrown away count. The FLOPs of a training include its validations; the
    forward passes of the reference in a distillation are an entry of their own.
    """
    reference = outcome.reference
    entries = [
        _entry(
            "reference training" + (", by another run" if reference.taken_from else ""),
            reference.training.get("tokens"),
            reference.training.get("flops"),
            reference.training.get("seconds"),
            reference.training.get("processes"),
            borrowed=not reference.trained_here,
        ),
        _benchmark_entry("benchmark", outcome.benchmark),
    ]
    if (cost_of_scores := selection_cost(reference)) is not None:
        entries.append(_entry("choice of layers", 0, *cost_of_scores, 1))
    for number, stage in enumerate((reference.tournament or {}).get("stages", []), 1):
        rows = stage["candidates"]
        item = f"tournament, stage {number}: {len(rows)} candidates of {stage['tokens']:,} tokens"
        tokens, flops, seconds = (
            sum(row[key] for row in rows) for key in ("tokens", "flops", "seconds")
        )
        entries.append(_entry(item, tokens, flops, seconds, rows[0]["processes"]))
    for number, result in enumerate(outcome.rounds, 1):
        if not result.is_patched:
            entries += _entries(f"{result.name}, round {number}, {result.layers} layers", result)
    for layers, sizes in outcome.patched.items():
        for result in sizes:
            item = f"{result.name}, {result.layers} layers, {result.layers - layers} untrained"
            entries += _entries(item, result)
    for result in outcome.controls:
        entries += _entries(f"{result.name}, {result.layers} layers", result)
    for result in outcome.repeats:
        item = f"{result.name}, {result.layers} layers, seed {result.seed}"
        entries += _entries(item, result)
    if gains is not None:
        entries.append(_entry("size, speed and fidelity", 0, gains.flops, gains.seconds, 1))
    return [entry.model_copy(update={"price": _price(entry, cost)}) for entry in entries]


def training_ledger(before: Benchmark, result: TrainingResult) -> list[LedgerEntry]:
    """List every cost of a training without a recipe."""
    return [
        _benchmark_entry("val_loss before", before),
        *_entries(f"{result.name}, {result.layers} layers", result),
    ]


def _price(entry: LedgerEntry, cost: Cost) -> float | None:
    if cost.price_per_hour is None or entry.borrowed or entry.seconds is None:
        return None
    return float(entry.seconds / 3600 * cost.price_per_hour)


def _entries(item: str, result: TrainingResult) -> list[LedgerEntry]:
    processes = result.settings.get("processes")
    flops, seconds, repair = result.flops - result.reference_flops, result.seconds, []
    if result.repair is not None:
        spent = result.repair["flops"], result.repair["seconds"]
        flops, seconds = flops - spent[0], seconds - spent[1]
        shared = result.repair.get("shared", {}).get("repair")
        whose = "" if shared is None else f", that of {shared['made_for']}"
        repair = [_entry(f"{item}: repair of the cut{whose}", 0, *spent, 1)]
    entries = [*repair, _entry(item, result.tokens, flops, seconds, processes)]
    if result.distill is not None:
        # Their time is part of the training's.
        forwards = f"{item}: forwards of the reference"
        entries.append(_entry(forwards, 0, result.reference_flops, None, processes))
    if result.fidelity is not None:
        measured = result.fidelity["flops"], result.fidelity["seconds"]
        entries.append(_entry(f"{item}: fidelity", 0, *measured, 1))
    return entries


def _benchmark_entry(item: str, benchmark: Benchmark) -> LedgerEntry:
    return _entry(item, 0, benchmark.flops, benchmark.seconds, benchmark.processes)


def _entry(
    item: str,
    tokens: int | None,
    flops: float | None,
    seconds: float | None,
    processes: int | None,
    borrowed: bool = False,
) -> LedgerEntry:
    timed = seconds is not None and processes is not None
    return LedgerEntry(
        item=item,
        tokens=tokens,
        flops=flops,
        seconds=None if seconds is None else round(seconds, 1),
        processes=processes,
        device_hours=(seconds or 0.0) * (processes or 0) / 3600 if timed else None,
        borrowed=borrowed,
    )


def gap_closed(outcome: Outcome) -> float | None:
    """Compute the share of the gap between scratch and reference that the target closes.

    (scratch - target) / (scratch - reference), in val_loss, for scratch of the target's size and
    tokens; each loss is the mean over the seeds it was trained with.

    Returns:
        1 when matched; None without such a control, or when scratch and reference lie within
        three standard errors of each other.
    """
    target = outcome.target
    trained = _trained_into(outcome)
    scratch = next((c for c in outcome.controls if _is_scratch_for(c, target, trained)), None)
    if scratch is None:
        return None
    scratch_mean, target_mean = together([scratch, target], outcome.repeats)
    gaps = scratch_mean.windows - np.array(outcome.benchmark.windows)
    if len(gaps) < 2:
        return None
    gap, gap_se = float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    if gap <= _MIN_GAP_IN_SE * gap_se:
        return None
    return (scratch_mean.val_loss - target_mean.val_loss) / gap


def _trained_into(outcome: Outcome) -> TrainingResult:
    """The round that the target's weights were trained in; a patched target had none itself."""
    if not outcome.target.is_patched:
        return outcome.target
    rounds = outcome.rounds[: outcome.target_round]
    return [result for result in rounds if not result.is_patched][-1]


def _is_scratch_for(
    control: TrainingResult, target: TrainingResult, trained: TrainingResult
) -> bool:
    same = control.layers == target.layers and control.tokens == trained.tokens
    is_scratch = control.start == "fresh" and not control.made_of and control.distill is None
    # A target that continued from another training saw more tokens.
    return same and is_scratch and not trained.first_sample


def trained_reference(outcome: Outcome, recipe: Recipe) -> TrainedReferenceRecord | None:
    """Pair the target with the whole reference, trained on text alone for as many tokens.

    Returns:
        The difference of their losses, each the mean over its seeds; None where no control is that.
    """
    target, trained = outcome.target, _trained_into(outcome)
    if trained.first_sample or target.layers == outcome.reference.layers:
        return None
    for control in outcome.controls:
        variant = recipe.variants.get(control.name)
        is_whole = control.start == "inherit" and control.layers == outcome.reference.layers
        if variant is None or not is_whole or control.tokens != trained.tokens:
            continue
        if variant.distill is None and variant.parts == "all" and not variant.only:
            of_target, of_control = together([target, control], outcome.repeats)
            gaps = of_target.windows - of_control.windows
            error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None
            return TrainedReferenceRecord(
                name=control.name, difference=float(gaps.mean()), difference_se=error
            )
    return None


def variant_rows(outcome: Outcome) -> list[TrainedModel]:
    """A row for the reference, the target and every control, over all of their seeds."""
    reference, benchmark = outcome.reference, outcome.benchmark
    first = TrainedModel(
        name="reference",
        start="trained",
        layers=reference.layers,
        params=reference.params,
        tokens=reference.training.get("tokens"),
        val_loss=benchmark.val_loss,
        val_loss_se=benchmark.val_loss_se,
        val_loss_sd=None,
        num_seeds=1,
        seconds=reference.training.get("seconds"),
        flops_per_token=reference.flops_per_token,
        flops=reference.training.get("flops"),
        path="reference" if reference.trained_here else None,
    )
    repeated = together([outcome.target, *outcome.controls], outcome.repeats)
    rows = [variant.row(benchmark.windows) for variant in repeated]
    return [first, *map(TrainedModel.model_validate, rows)]


def run_result(
    outcome: Outcome, recipe: Recipe, run: Path, report: Path, gains: MeasuredGains | None = None
) -> Result:
    """Make the result that `--json` prints and run.json keeps."""
    paid = [entry for entry in ledger(outcome, recipe.cost, gains) if not entry.borrowed]
    target = together([outcome.target], outcome.repeats)[0]
    result = Result(
        outcome=outcome.verdict,
        method=method_of(recipe),
        layers=outcome.target.layers,
        reference_layers=outcome.reference.layers,
        rounds=sum(not result.is_patched for result in outcome.rounds),
        benchmark=outcome.benchmark.val_loss,
        val_loss=outcome.target.val_loss,
        val_loss_se=outcome.target.val_loss_se,
        seeds=[result.seed for result in target.results],
        seeds_matched=count_matched(target, recipe),
        gap_closed=gap_closed(outcome),
        trained_reference=trained_reference(outcome, recipe),
        tokens=sum(entry.tokens or 0 for entry in paid),
        flops=sum(entry.flops or 0.0 for entry in paid),
        seconds=round(sum(entry.seconds or 0.0 for entry in paid), 1),
        device_hours=sum(entry.device_hours or 0.0 for entry in paid),
        price=_total_price(paid, recipe.cost),
        variants=[{key: getattr(row, key) for key in _SHORT_ROW} for row in variant_rows(outcome)],
        run=str(run),
        target=str(run / "target"),
        report=str(report),
    )
    return result if gains is None else result.model_copy(update={"gains": gains.rows})


def count_matched(target: Repeated, recipe: Recipe) -> int:
    """Count the seeds with which the target matched."""
    match = recipe.grow.match
    # Tasks are asked of the first seed's model alone.
    of_others = match.model_copy(update={"tasks": None})
    verdicts = [
        judge(result, match if place == 0 else of_others)
        for place, result in enumerate(target.results)
    ]
    return verdicts.count("matched")


def _total_price(entries: Sequence[LedgerEntry], cost: Cost) -> PriceRecord | None:
    if cost.price_per_hour is None:
        return None
    paid = sum(entry.price or 0.0 for entry in entries)
    return PriceRecord(paid=paid, currency=cost.currency, price_per_hour=cost.price_per_hour)
