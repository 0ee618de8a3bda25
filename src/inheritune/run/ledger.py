"""What a run came to and what it cost: everything counted, in the shape that run.json keeps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.recipe.deviations import deviations
from inheritune.recipe.schema import Cost, Recipe
from inheritune.run.derive import Outcome, judge
from inheritune.steps.benchmark import Benchmark
from inheritune.steps.result import TrainingResult
from inheritune.steps.seeds import Repeated, together

__all__ = ["gap_closed", "ledger", "notes", "result", "training_ledger", "variant_rows"]

# A gap smaller than this many of its standard errors is not worth dividing by.
_LEAST_GAP_SE = 3.0


def ledger(outcome: Outcome, cost: Cost) -> list[dict[str, Any]]:
    """Every cost of a run, an entry each; borrowed ones were paid before it, by somebody else.

    Args:
        outcome: Every round counts, also those that were thrown away.
        cost: What an hour of the machine costs.

    Returns:
        Entries with ``item``, ``tokens``, ``flops``, ``seconds``, ``processes`` (None where
        unknown) and ``borrowed``; ``device_hours``, which are seconds times processes, of which
        each has a device; and ``price``, of the machine, None for what was borrowed. The FLOPs of
        a training include its validations; those that a distillation spends on its reference are
        an entry of their own.
    """
    training = outcome.reference.training
    entries = [
        _entry(
            "reference training" + (", by another run" if outcome.reference.taken_from else ""),
            training.get("tokens"),
            training.get("flops"),
            training.get("seconds"),
            training.get("processes"),
            borrowed=not outcome.reference.trained_here,
        ),
        _benchmark_entry("benchmark", outcome.benchmark),
    ]
    for number, trial in enumerate(outcome.rounds, 1):
        entries += _trial_entries(f"{trial.name}, round {number}, {trial.layers} layers", trial)
    for trial in outcome.controls:
        entries += _trial_entries(f"{trial.name}, {trial.layers} layers", trial)
    for trial in outcome.repeats:
        item = f"{trial.name}, {trial.layers} layers, seed {trial.seed}"
        entries += _trial_entries(item, trial)
    return [entry | {"price": _price(entry, cost)} for entry in entries]


def _price(entry: Mapping[str, Any], cost: Cost) -> float | None:
    if cost.price_per_hour is None or entry["borrowed"] or entry["seconds"] is None:
        return None
    return float(entry["seconds"] / 3600 * cost.price_per_hour)


def _trial_entries(item: str, trial: TrainingResult) -> list[dict[str, Any]]:
    """A training; and the forward passes of its reference, whose time is within the training's."""
    processes = trial.settings.get("processes")
    own = _entry(item, trial.tokens, trial.flops - trial.reference_flops, trial.seconds, processes)
    if trial.distill is None:
        return [own]
    forwards = _entry(
        f"{item}: forwards of the reference", 0, trial.reference_flops, None, processes
    )
    return [own, forwards]


def _benchmark_entry(item: str, benchmark: Benchmark) -> dict[str, Any]:
    return _entry(item, 0, benchmark.flops, benchmark.seconds, benchmark.processes)


def training_ledger(before: Benchmark, trial: TrainingResult) -> list[dict[str, Any]]:
    """Every cost of a training without a recipe; entries as in `ledger`."""
    return [
        _benchmark_entry("val_loss before", before),
        *_trial_entries(f"{trial.name}, {trial.layers} layers", trial),
    ]


def _entry(
    item: str,
    tokens: int | None,
    flops: float | None,
    seconds: float | None,
    processes: int | None,
    borrowed: bool = False,
) -> dict[str, Any]:
    known = seconds is not None and processes is not None
    return {
        "item": item,
        "tokens": tokens,
        "flops": flops,
        "seconds": None if seconds is None else round(seconds, 1),
        "processes": processes,
        "device_hours": (seconds or 0.0) * (processes or 0) / 3600 if known else None,
        "borrowed": borrowed,
    }


def gap_closed(outcome: Outcome) -> float | None:
    """(scratch - target) / (scratch - reference), for scratch of the target's size and tokens.

    Where they were trained with several seeds, each loss is the mean over its own.

    Returns:
        A share, 1 when matched; None without such a control, or when scratch and reference lie
        within three standard errors of each other.
    """
    target = outcome.target
    scratch = next((c for c in outcome.controls if _same_size_and_tokens(c, target)), None)
    if scratch is None:
        return None
    of_scratch, of_target = together([scratch, target], outcome.repeats)
    gaps = of_scratch.windows - np.array(outcome.benchmark.windows)
    if len(gaps) < 2:
        return None
    gap, gap_se = float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    if gap <= _LEAST_GAP_SE * gap_se:
        return None
    return (of_scratch.val_loss - of_target.val_loss) / gap


def _same_size_and_tokens(control: TrainingResult, target: TrainingResult) -> bool:
    same = control.layers == target.layers and control.tokens == target.tokens
    is_scratch = control.start == "fresh" and not control.made_of and control.distill is None
    # What went on from another training saw more.
    return same and is_scratch and not target.first_sample


def variant_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """A row for the reference, the target and every control, over all of their seeds."""
    reference, benchmark = outcome.reference, outcome.benchmark
    first = {
        "name": "reference",
        "start": "trained",
        "layers": reference.layers,
        "params": reference.params,
        "tokens": reference.training.get("tokens"),
        "val_loss": benchmark.val_loss,
        "val_loss_se": benchmark.val_loss_se,
        "val_loss_sd": None,
        "num_seeds": 1,
        "seconds": reference.training.get("seconds"),
        "flops_per_token": reference.flops_per_token,
        "flops": reference.training.get("flops"),
        "path": "reference" if reference.trained_here else None,
    }
    trials = [outcome.target, *outcome.controls]
    return [first] + [r.row(benchmark.windows) for r in together(trials, outcome.repeats)]


def notes(outcome: Outcome, recipe: Recipe) -> list[str]:
    """What a reader must know to weigh the figures: sentences."""
    said = _of_seeds(outcome, recipe)
    reference = outcome.reference
    if reference.taken_from is not None:
        said.append(
            f"The reference was trained by another run and taken from {reference.taken_from}; its "
            "cost is listed as borrowed and is not in the totals."
        )
    elif not reference.trained_here:
        said.append(
            "The reference was trained before this run; its cost is listed as borrowed and is not "
            "in the totals."
        )
    fresh = [control for control in outcome.controls if control.start == "fresh"]
    shallower = [c for c in fresh if c.layers < reference.layers and c.distill is None]
    trained = reference.training.get("tokens") or 0
    better = [
        control
        for control in shallower
        if control.val_loss <= outcome.benchmark.val_loss and control.tokens <= trained
    ]
    if better:
        said.append(
            f"The reference is undertrained: {better[0].name}, with fewer layers and no more "
            "tokens, is at least as good. Matching it shows a warm start, not the finding."
        )
    epochs = max(trial.epochs for trial in [*outcome.rounds, *outcome.controls])
    if epochs > 1:
        said.append(f"The longest training passed over its text {epochs:.1f} times.")
    for name, variant in recipe.variants.items():
        if variant.parts.startswith("paper-code"):
            said.append(
                f"{name} is a control ({variant.parts}): it leaves out what the authors' code does "
                "not copy, and is no result of the method."
            )
    if outcome.target.first_sample:
        said.append(
            "Each round went on from the trained layers of the one before: the target saw the "
            "tokens of all rounds."
        )
    said += _of_growth(outcome, recipe)
    if recipe.grow.tolerance:
        said.append(f"Matched means at most {recipe.grow.tolerance} nats above the benchmark.")
    for name, distill in {t.name: t.distill for t in [*outcome.rounds, *outcome.controls]}.items():
        if distill is not None:
            said.append(
                f"{name} also learnt from the reference's distributions: its training loss is "
                f"{_loss_of(distill)}. val_loss, which is compared, is cross-entropy alone, as of "
                "all others."
            )
    skipped = sum(trial.skipped for trial in [*outcome.rounds, *outcome.controls])
    if skipped:
        said.append(f"{skipped} steps were skipped because a value was not finite.")
    return said + deviations(recipe)


def _of_seeds(outcome: Outcome, recipe: Recipe) -> list[str]:
    counts = {name: len(recipe.seeds_of(name)) for name in recipe.variants}
    if not outcome.repeats:
        return ["1 seed: each variant was trained once, and differences between seeds are unknown."]
    said, target = [], together([outcome.target], outcome.repeats)[0]
    if len(target.trials) > 1:
        said.append(
            f"With {target.first.layers} layers the target matched in {_matched(target, recipe)} "
            f"of {len(target.trials)} seeds; growth was decided by the first, "
            f"{target.first.seed}, whose model is the result."
        )
    once = [name for name, count in counts.items() if count == 1]
    if once:
        said.append(f"1 seed: {', '.join(once)}. The spread over seeds is not known there.")
    return said


def _of_growth(outcome: Outcome, recipe: Recipe) -> list[str]:
    said = list(outcome.growth.notes)
    if recipe.grow.search == "bisect" and len(outcome.rounds) > 1:
        said.append(
            "Sizes were searched by halving: that the target is the smallest that matches holds if "
            "more layers never do worse."
        )
    trained = {trial.name for trial in outcome.controls}
    for name, variant in recipe.variants.items():
        if variant.start == "grown" and name not in trained:
            said.append(f"{name} was not trained: the target needed one size only.")
    return said


def _matched(target: Repeated, recipe: Recipe) -> int:
    return sum(judge(trial, recipe.grow.tolerance) == "matched" for trial in target.trials)


def _paid(entries: Sequence[Mapping[str, Any]], cost: Cost) -> dict[str, Any]:
    paid = sum(entry["price"] or 0.0 for entry in entries)
    return {"paid": paid, "currency": cost.currency, "price_per_hour": cost.price_per_hour}


def _loss_of(distill: Mapping[str, Any]) -> str:
    alpha, temperature = distill["alpha"], distill["temperature"]
    scale = "" if temperature == 1 else f" x {temperature:g}^2"
    over = f" over the {distill['top_k']} likeliest ids and the rest" if distill["top_k"] else ""
    return f"{alpha:g} x cross-entropy + {1 - alpha:g}{scale} x KL divergence{over}"


def result(outcome: Outcome, recipe: Recipe, run: Path, report: Path) -> dict[str, Any]:
    """The one object that `--json` prints and run.json keeps under `result`."""
    paid = [entry for entry in ledger(outcome, recipe.cost) if not entry["borrowed"]]
    rows = [
        {
            key: row[key]
            for key in (
                *("name", "start", "layers", "params", "tokens"),
                *("val_loss", "val_loss_se", "val_loss_sd", "num_seeds"),
            )
        }
        for row in variant_rows(outcome)
    ]
    target = together([outcome.target], outcome.repeats)[0]
    return {
        "outcome": outcome.verdict,
        "layers": outcome.target.layers,
        "reference_layers": outcome.reference.layers,
        "rounds": len(outcome.rounds),
        "benchmark": outcome.benchmark.val_loss,
        "val_loss": outcome.target.val_loss,
        "val_loss_se": outcome.target.val_loss_se,
        "seeds": [trial.seed for trial in target.trials],
        "seeds_matched": _matched(target, recipe),
        "gap_closed": gap_closed(outcome),
        "tokens": sum(entry["tokens"] or 0 for entry in paid),
        "flops": sum(entry["flops"] or 0.0 for entry in paid),
        "seconds": round(sum(entry["seconds"] or 0.0 for entry in paid), 1),
        "device_hours": sum(entry["device_hours"] or 0.0 for entry in paid),
        "price": None if recipe.cost.price_per_hour is None else _paid(paid, recipe.cost),
        "variants": rows,
        "run": str(run),
        "target": str(run / "target"),
        "report": str(report),
    }
