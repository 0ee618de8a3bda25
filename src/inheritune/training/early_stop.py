"""Where a training will end, told from its validations: whether a round can be given up early.

The curve is ``L = a + b S^-p - c D``: S is the learning rate summed over the tokens so far, D how
far the rate has fallen from its peak. The first two terms are the power law of training. The third
is what a falling rate gains. A power law in tokens alone, fitted to the first half of a cosine,
does not know of it and ends too high. Until the rate has fallen, c is not known, and then nothing
is said: of `wsd`, before its decay.

The limit is that of a least-squares prediction, one-sided, 99%, for the worst exponent that the
points allow. It takes the errors as independent and the curve as right. Neither holds: neighbouring
validations share their weights, and the form is empirical. So a decision takes two validations one
after the other, and a curve of which twice the gain that is still expected would not do either.

How far off it was, on 33 published curves: docs/log.md.

Source of the form: Tissue et al., Scaling law with learning rate annealing, arXiv 2408.11029,
equation 1. Its second area has a memory of some thousand steps; for trainings that are long against
that, it is in proportion to how far the rate has fallen, which stands here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "LEAST",
    "Decision",
    "Forecast",
    "Goal",
    "decide",
    "find_decision",
    "forecast",
]

CONFIDENCE = 0.99  # one-sided
LEAST = 5  # validations after the warm-up
_IN_A_ROW = 2
_GAIN = 2.0  # times the gain still expected must not do either
_NOISE = 1e-3  # nats: no curve is known better than this, however well a few points fit
_EXPONENTS = np.geomspace(0.05, 3.0, 240)
_SINGULAR = 1e7
_GRID = 1024
_LEAST_FALL = 0.05  # of that at the end: below, what a falling rate gains is not known
# Student's t, 99% one-sided, of 1 to 10 degrees of freedom; above, see _quantile.
_T = (31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764)
_Z = 2.32635

Rate = Callable[[int], float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """What a training is to reach, or else is given up.

    Attributes:
        val_loss: Nats per token.
        audit: Train to the end all the same.
    """

    val_loss: float
    audit: bool = False


@dataclass(frozen=True)
class Forecast:
    """The val_loss at the end of a training, nats per token.

    Attributes:
        expected: By the fitted curve.
        lowest: It ends above this, with `CONFIDENCE`.
    """

    expected: float
    lowest: float


@dataclass(frozen=True)
class Decision:
    """That a training cannot reach its goal, and what it was decided by.

    Attributes:
        tokens: Of the training, when it was decided.
        val_loss: Then, nats per token.
        expected: At the end, see `Forecast`.
        lowest: At the end, see `Forecast`.
        goal: What it was to reach.
    """

    tokens: int
    val_loss: float
    expected: float
    lowest: float
    goal: float


def decide(
    points: Sequence[tuple[int, float]], goal: float, rate: Rate, total: int, warmup: int
) -> Decision | None:
    """Whether a training can be given up at its last validation.

    Args:
        points: Tokens and val_loss of every validation so far, in their order.
        goal: Nats per token.
        rate: Learning rate after so many tokens, in [1, total].
        total: Tokens of the whole training.
        warmup: Tokens of its warm-up; validations within are left out, as is that at the start.

    Returns:
        None where it cannot: fewer than `LEAST` validations by the one before, one that reached the
        goal, a curve that allows no forecast, or one that may still reach it.
    """
    known = [point for point in points if point[0] > 0 and point[0] >= warmup]
    if len(known) < LEAST + _IN_A_ROW - 1 or known[-1][0] >= total:
        return None
    ends = range(len(known), len(known) - _IN_A_ROW, -1)
    found = [_out_of_reach(known[:end], goal, rate, total) for end in ends]
    return found[0] if all(found) else None


def find_decision(
    points: Sequence[tuple[int, float]], goal: float, rate: Rate, total: int, warmup: int
) -> Decision | None:
    """The first validation at which a training could have been given up; see `decide`.

    It follows from the points up to it alone: with more of them, or after a restart, the answer is
    the same.
    """
    ends = range(1, len(points) + 1)
    found = (decide(points[:end], goal, rate, total, warmup) for end in ends)
    return next((decision for decision in found if decision is not None), None)


def _out_of_reach(
    points: Sequence[tuple[int, float]], goal: float, rate: Rate, total: int
) -> Decision | None:
    tokens, last = points[-1]
    if min(loss for _, loss in points) <= goal:
        return None
    found = forecast(points, rate, total)
    if found is None or found.lowest <= goal or last - _GAIN * (last - found.expected) <= goal:
        return None
    return Decision(tokens, last, found.expected, found.lowest, goal)


def forecast(points: Sequence[tuple[int, float]], rate: Rate, total: int) -> Forecast | None:
    """Fit the curve, and read it off at the end of the training.

    Args:
        points: Tokens and val_loss, without the start and the warm-up.
        rate: Learning rate after so many tokens, in [1, total].
        total: Tokens of the whole training.

    Returns:
        None where the points do not determine the curve.
    """
    losses = np.array([loss for _, loss in points])
    area, fall = _schedule(rate, total)
    at = np.array([tokens for tokens, _ in points], dtype=float) / total
    falls, last = fall(at), float(fall(np.ones(1))[0])
    if falls.max() < _LEAST_FALL * last:
        return None
    free = len(points) - (4 if last > 0 else 3)  # with the exponent
    if free < 1 or not np.isfinite(losses).all():
        return None
    ones, powers = np.ones((len(_EXPONENTS), len(points))), area(at) ** -_EXPONENTS[:, None]
    columns, end = [ones, powers], [1.0, 1.0]
    if last > 0:
        columns, end = [*columns, ones * -falls], [*end, -last]
    design = np.stack(columns, axis=2)  # (P, n, 2 or 3); P exponents, n points
    fitted = _fit(design, np.array(end), losses)
    if fitted is None:
        return None
    squares, ends, levers = fitted
    t, sigma = _quantile(free), max(_NOISE, math.sqrt(squares.min() / free))
    # Of all exponents that fit about as well as the best one.
    allowed = squares <= squares.min() + (t * sigma) ** 2
    lowest = (ends - t * sigma * np.sqrt(1 + levers))[allowed].min()
    return Forecast(float(ends[squares.argmin()]), float(lowest))


def _schedule(rate: Rate, total: int) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Share of the summed learning rate, and fall from the peak, by the share of the tokens."""
    grid = np.linspace(0, 1, _GRID + 1)
    rates = np.array([rate(max(1, round(share * total))) for share in grid])
    summed = np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2)])
    peak = int(rates.argmax())
    fall = np.where(np.arange(_GRID + 1) < peak, 0.0, 1 - rates / rates[peak])
    return (
        lambda at: np.interp(at, grid, summed / summed[-1]),
        lambda at: np.interp(at, grid, fall),
    )


def _fit(design: Array, end: Array, losses: Array) -> tuple[Array, Array, Array] | None:
    """Least squares of a + b x - c y for each exponent, neither b nor c below zero.

    Returns:
        Sums of squares, values at the end and leverages of the end, each (P,), for the exponents of
        which the columns differ; None where there are none.
    """
    scale = np.abs(design).max(axis=1)  # (P, columns)
    scaled, ends = design / scale[:, None], end / scale
    usable = np.linalg.cond(scaled) < _SINGULAR
    if not usable.any():
        return None
    scaled, ends = scaled[usable], ends[usable]
    levers = np.square(np.einsum("pk,pkn->pn", ends, np.linalg.pinv(scaled))).sum(axis=1)
    best = np.full(len(scaled), np.inf)
    values = np.zeros(len(scaled))
    for kept in ([0], [0, 1], [0, 2], [0, 1, 2]):
        if kept[-1] >= scaled.shape[2]:
            continue
        found = np.linalg.pinv(scaled[:, :, kept]) @ losses  # (P, kept)
        left = np.einsum("pnk,pk->pn", scaled[:, :, kept], found) - losses
        squares = np.square(left).sum(axis=1)
        better = (found[:, 1:] >= 0).all(axis=1) & (squares < best)
        best = np.where(better, squares, best)
        values = np.where(better, (ends[:, kept] * found).sum(axis=1), values)
    return best, values, levers


def _quantile(free: int) -> float:
    """Of Student's t; above the table by its expansion about the normal one."""
    if free <= len(_T):
        return _T[free - 1]
    z = _Z
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
