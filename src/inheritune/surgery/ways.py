"""Define the ways of choosing layers by name, each (facts, count) -> layer indices.

To add a way of choosing layers:

1. Write a function ``(facts, count) -> layer indices`` and enter it in `WAYS` with its form for
   help texts.
2. If it uses scores from calibration text, write it in `surgery.removal`, where scores are measured
   as they are asked for. If it uses something else that is measured on the reference, add a field
   for that to `LayerFacts`, name the field in the way's ``needs``, and measure it where
   ``layers_by_rank`` is measured (`steps.analysis.with_measurements`).
3. Put `FORMS` into the description of ``select`` in recipe/variants.py and rewrite
   recipes/recipe.schema.json; tests compare them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from inheritune.errors import RecipeError
from inheritune.surgery import removal
from inheritune.surgery.removal import Cut, LayerScores, cheapest


@dataclass(frozen=True)
class LayerFacts:
    """Facts about a reference that ways of choosing layers may use."""

    layers: int  # number of its layers, N
    layers_by_rank: Sequence[int] | None = None  # lowest attention rank first; None: not measured
    scores: LayerScores | None = None  # None: there is no calibration text to measure them on
    # What `auto` compares: a way, or the layers of a list; None: `DEFAULT_CANDIDATES`
    candidates: Mapping[str, Cut | None] | None = None
    winner: Cut | None = None  # of a tournament of these; None: there was none


@dataclass(frozen=True)
class Way:
    """A named way of choosing layers."""

    choose: Callable[[LayerFacts, int], Sequence[int]]  # for a number from 1 to N
    form: str  # an example for help texts
    needs: str | None = None  # field of `LayerFacts` that must have been measured
    counts: bool = True  # whether the number is the number of layers
    nested: bool = False  # whether a larger choice has all layers of a smaller one
    least: int = 1  # fewest layers that it can keep, 1 or 2


# --- the ways, each (facts, count) -> layer indices ---


def _middle(facts: LayerFacts, count: int) -> Sequence[int]:
    start = (facts.layers - count) // 2
    return range(start, start + count)


def _first_and_last(facts: LayerFacts, count: int) -> Sequence[int]:
    return (*range(count - 1), facts.layers - 1)


def _strided(facts: LayerFacts, count: int) -> Sequence[int]:
    # Layer i of n is round(i (N - 1) / (n - 1)), half up, in integers: floats round halves to even,
    # and so not always to the same side.
    steps = max(count - 1, 1)
    return [(2 * i * (facts.layers - 1) + steps) // (2 * steps) for i in range(count)]


def _lazy(facts: LayerFacts, count: int) -> Sequence[int]:
    by_rank = facts.layers_by_rank or ()
    if count > len(by_rank):
        raise RecipeError(
            f"lazy asks for {count} layers, but {len(by_rank)} have attention.",
            "Choose fewer layers, or another select.",
        )
    return sorted(by_rank[:count])


def _every_second(facts: LayerFacts, step: int) -> Sequence[int]:
    # Boomerang, arXiv 2510.05064: every second layer from the first, and the last two.
    return sorted({*range(facts.layers)[::step], *range(facts.layers)[-2:]})


def _by_scores(
    choose: Callable[[LayerScores, int, int], Sequence[int]],
) -> Callable[[LayerFacts, int], Sequence[int]]:
    def by_scores(facts: LayerFacts, count: int) -> Sequence[int]:
        assert facts.scores is not None  # `_choose` has seen that they can be measured
        with facts.scores.in_memory():
            return choose(facts.scores, facts.layers, count)

    return by_scores


def _auto(facts: LayerFacts, count: int) -> Sequence[int]:
    assert facts.scores is not None  # as above
    if facts.winner is not None and len(facts.winner) == count:
        return facts.winner
    with facts.scores.in_memory():
        return cheapest(facts.scores, candidates(facts, count).values())


# `first` and the controls: Sanyal et al., Inheritune, arXiv 2404.08634.
WAYS = {
    "first": Way(lambda facts, n: range(n), "13 or first:13 (the first 13)", nested=True),
    "last": Way(lambda facts, n: range(facts.layers)[-n:], "last:13", nested=True),
    "middle": Way(_middle, "middle:13"),
    "first+last": Way(
        _first_and_last, "first+last:10+3 (first 10, last 3; first+last:13 is 12+1)", least=2
    ),
    "strided": Way(_strided, "strided:13 (evenly spread)"),
    "every": Way(
        lambda facts, step: range(facts.layers)[::step], "every:2 (0, 2, 4, ...)", counts=False
    ),
    "boomerang": Way(_every_second, "boomerang:2 (0, 2, 4, ... and the last two)", counts=False),
    "block": Way(
        _by_scores(removal.block), "block:13 (all but the cheapest block)", "scores", least=2
    ),
    "greedy": Way(
        _by_scores(removal.greedy),
        "greedy:13 (the cheapest removed one by one)",
        "scores",
        nested=True,
        least=2,
    ),
    "influence": Way(
        _by_scores(removal.influence),
        "influence:13 (highest block influence)",
        "scores",
        nested=True,
    ),
    "angular": Way(
        _by_scores(removal.angular),
        "angular:13 (all but the block of the smallest angle)",
        "scores",
    ),
    "norm-ratio": Way(
        _by_scores(removal.norm_ratio),
        "norm-ratio:13 (highest ratio of norms)",
        "scores",
        nested=True,
    ),
    "auto": Way(_auto, "auto:13 (the cheapest of these)", "scores", least=2),
    "lazy": Way(
        _lazy,
        "lazy:13 (lowest attention rank; in recipes only)",
        needs="layers_by_rank",
        nested=True,
    ),
}


def candidates(facts: LayerFacts, count: int) -> dict[str, Cut]:
    """Choose ``count`` layers, 2 or more, in each of the ways that `auto` compares.

    A list of layers is of one size, and takes part at that size only; where nothing is left, the
    default candidates do.
    """
    # Here and not above: help texts need this file, and the recipe brings pydantic with it.
    from inheritune.recipe.inherit import DEFAULT_CANDIDATES

    named = facts.candidates or {}
    fitting = {name: cut for name, cut in named.items() if cut is None or len(cut) == count}
    return {
        name: tuple(WAYS[name].choose(facts, count)) if cut is None else cut
        for name, cut in (fitting or dict.fromkeys(DEFAULT_CANDIDATES)).items()
    }
