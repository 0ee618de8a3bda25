"""Find the number of layers with which a reference is as small or as fast as asked for."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from inheritune.errors import RecipeError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.planning.candidates import (
    Budget,
    Candidate,
    CutPlan,
    every_candidate,
    plan_cut,
)
from inheritune.recipe.values import amount_of_bytes, amount_of_tokens
from inheritune.reporting.quantities import amount, counted, data_size


@dataclass(frozen=True)
class Goal:
    """What the target must reach."""

    name: str  # "parameters" or "memory", at most; "speed", at least
    amount: float  # parameters; bytes; or times the reference's tokens per second


def goal_of(
    parameters: int | str | None, memory: int | str | None, speed: float | str | None
) -> Goal | None:
    """Read the one goal that is given; None: none is.

    Raises:
        RecipeError: Several are given, or one is no amount.
    """
    values = {"parameters": parameters, "memory": memory, "speed": speed}
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise RecipeError(
            f"{' and '.join(f'--{name}' for name in given)} are {len(given)} goals.",
            "Name one; the number of layers follows from it.",
        )
    if parameters is not None:
        return Goal("parameters", amount_of_tokens(parameters, "--parameters"))
    if memory is not None:
        return Goal("memory", amount_of_bytes(memory, "--memory"))
    return None if speed is None else Goal("speed", _factor(speed))


def _factor(speed: float | str) -> float:
    text = str(speed).strip().removesuffix("x")
    factor = float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) else 0.0
    if factor <= 1:
        raise RecipeError(
            f"--speed {escape(repr(speed), 60)} is no factor above 1.",
            "Write how many times as fast as the reference, like 1.3x.",
        )
    return factor


def plan_goal(reference: ModelDirectory, goal: Goal, budget: Budget) -> CutPlan:
    """Plan the cut with the most of the first layers that reaches a goal and is safe.

    Parameters and bytes are those of the target's files. The cache is that of one sequence of
    `Budget.seq_len` tokens. The speed is estimated: FLOPs of a token of the reference / FLOPs of a
    token of the target. `evaluate --speed` measures it.

    Raises:
        RecipeError: No safe cut reaches the goal, or the whole reference does.
    """
    table = every_candidate(reference, budget)
    *cuts, whole = table.candidates
    measure = _measure(goal, whole, table.seq_len)
    safe = [candidate for candidate in cuts if candidate.cut.is_safe]
    smaller = [candidate for candidate in safe if measure.value(candidate) <= measure.limit]
    name = reference.name
    if measure.value(whole) <= measure.limit:
        raise RecipeError(
            f"{name} itself has {measure.text(whole)}: nothing has to be left out.",
            "Ask for less, or plan without a goal, which shows all cuts.",
        )
    if not smaller:
        nearest = safe[0] if safe else whole
        raise RecipeError(
            f"no safe cut of {name} reaches that: {counted(nearest.layers, 'layer')} of "
            f"{table.layers} still has {measure.text(nearest)}.",
            "Ask for that or more, or plan without a goal, which shows all cuts.",
        )
    layers = smaller[-1].layers
    text = f"the most layers for that: {layers} have {measure.text(smaller[-1])}"
    next_cut = next((c for c in cuts if c.layers > layers and c.cut.is_safe), whole)
    text += f", {next_cut.layers} have {measure.text(next_cut)}"
    return replace(plan_cut(reference, str(layers), budget), goal=text)


@dataclass(frozen=True)
class _Measure:
    """A quantity that falls with the layers, its limit, and how it is told."""

    limit: float
    value: Callable[[Candidate], float]
    text: Callable[[Candidate], str]


def _measure(goal: Goal, whole: Candidate, seq_len: int) -> _Measure:
    if goal.name == "parameters":
        return _Measure(
            goal.amount,
            lambda c: c.counts.params,
            lambda c: f"{amount(c.counts.params)} parameters",
        )
    if goal.name == "memory":
        return _Measure(
            goal.amount,
            lambda c: c.bytes_in_use(seq_len),
            lambda c: f"{data_size(c.bytes_in_use(seq_len))} with a cache of {seq_len:,} tokens",
        )
    full = whole.counts.flops_per_token
    return _Measure(
        full / goal.amount,
        lambda c: c.counts.flops_per_token,
        lambda c: f"about {full / c.counts.flops_per_token:.2f}x the speed of the reference",
    )
