"""Find the number of layers with which a reference is as small or as fast as asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from inheritune.errors import RecipeError
from inheritune.model_files.directory import ModelDirectory
from inheritune.planning.candidates import Budget, Candidate, every_candidate
from inheritune.reporting.quantities import amount, counted, data_size

@dataclass(frozen=True)
class Goal:
    """What the target must reach; one of three is given."""

    parameters: int | None = None  # at most so many parameters
    memory: int | None = None  # at most so many bytes: weights and the cache of `seq_len` tokens
    speed: float | None = None  # at least so many times the reference's tokens per second

    def __post_init__(self) -> None:
        """Refuse several goals, and a speed that is none."""
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise RecipeError(
                f"{' and '.join(f'--{name}' for name in given)} are several goals.",
                "Name one; the number of layers follows from it.",
            )
        if self.speed is not None and not 1 < self.speed < 10**6:
            raise RecipeError(
                f"--speed {self.speed:g} is not above 1.",
                "Write how many times as fast as the reference: 1.3x.",
            )


@dataclass(frozen=True)
class Reached:
    """The cut that a goal leads to."""

    layers: int
    sentence: str  # what it reaches, in words


def layers_for_goal(reference: ModelDirectory, goal: Goal, budget: Budget = Budget()) -> Reached:
    """Find the most layers, a safe cut of the first ones, that reach a goal.

    Parameters and bytes are those of the target's files. The cache is that of `Budget.seq_len`
    tokens of one sequence. The speed is estimated by the FLOPs of a token, FLOPs of the reference
    / FLOPs of the target: what is not computed takes no time. Generating one sequence is bound by
    the bytes that are read instead, which shrink alike; `evaluate --speed` measures it.

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
            f"Ask for less, or choose among all cuts: inheritune plan {name}",
        )
    if not smaller:
        nearest = safe[0] if safe else whole
        raise RecipeError(
            f"no safe cut of {name} reaches that: {counted(nearest.layers, 'layer')} of "
            f"{table.layers} still has {measure.text(nearest)}.",
            f"Ask for that or more, or look at all cuts: inheritune plan {name}",
        )
    layers = smaller[-1].layers
    kept = f"the first {layers} of {table.layers} layers have {measure.text(smaller[-1])}"
    return Reached(layers, f"{kept}, all have {measure.text(whole)}")


@dataclass(frozen=True)
class _Measure:
    """A quantity that falls with the layers, its limit, and how it is told."""

    limit: float
    value: Callable[[Candidate], float]
    text: Callable[[Candidate], str]


def _measure(goal: Goal, whole: Candidate, seq_len: int) -> _Measure:
    if goal.parameters is not None:
        return _Measure(
            goal.parameters,
            lambda c: c.counts.params,
            lambda c: f"{amount(c.counts.params)} parameters",
        )
    if goal.memory is not None:
        return _Measure(
            goal.memory,
            lambda c: c.bytes_in_use(seq_len),
            lambda c: f"{data_size(c.bytes_in_use(seq_len))} with a cache of {seq_len:,} tokens",
        )
    full = whole.counts.flops_per_token
    return _Measure(
        full / (goal.speed or 1.0),
        lambda c: c.counts.flops_per_token,
        lambda c: f"about {full / c.counts.flops_per_token:.2f}x the speed of the reference",
    )
