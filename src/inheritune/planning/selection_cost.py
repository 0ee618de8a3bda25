"""Estimate what choosing layers by scores takes, by choosing them with scores that are made up."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from inheritune.analysis.cut_walk import count_layers, walk_order
from inheritune.data.calibration import WINDOWS
from inheritune.recipe.schema import Recipe
from inheritune.steps.selection import asks_for_scores, score_flops, window_length
from inheritune.steps.training_spec import inherited_layers, layers_of
from inheritune.surgery.removal import Block, Cut
from inheritune.surgery.selection import named_candidates
from inheritune.surgery.sizes import Sizes
from inheritune.surgery.ways import LayerFacts


def selection_flops(recipe: Recipe, sizes: Sizes, rounds: Sequence[int]) -> float | None:
    """Estimate the FLOPs of all scores that a run measures; None: it measures none.

    Which cuts are scored depends on the scores only for greedy, auto and for layers that are given
    back: made-up scores stand for them. For all other ways the figure is that of the ledger.

    Args:
        rounds: Layers of the target in each round.
    """
    if not asks_for_scores(recipe):
        return None
    model = sizes.reference
    scores = _MadeUpScores(model.layers)
    named = recipe.inherit.candidates
    candidates = None if named is None else named_candidates(named, model.layers, rounds[0])
    facts = LayerFacts(model.layers, scores=scores, candidates=candidates)
    inherits = [name for name, variant in recipe.variants.items() if variant.start == "inherit"]

    def cut(name: str, size: int) -> Cut:
        return inherited_layers(recipe, name, facts, size)

    # --- in the order of a run: the check of the ends, the rounds, the record of what was taken ---
    for name in inherits:
        counts = sorted({layers_of(recipe.variants[name], model.layers, n) for n in rounds})
        for size in dict.fromkeys((counts[0], counts[-1])):
            cut(name, size)
    if recipe.grow.patch:
        cut(recipe.target_name, recipe.grow.max_layers or model.layers)
    taken = [cut(recipe.target_name, size) for size in rounds]
    for name in inherits:
        variant = recipe.variants[name]
        if name != recipe.target_name and variant.parts == "all":
            taken.append(cut(name, layers_of(variant, model.layers, rounds[-1])))
    scores.divergences(taken)
    tokens = WINDOWS * window_length(recipe)
    whole = sizes.counts(range(model.layers), recipe.train.seq_len)
    runs = scores.layers_run * tokens, scores.heads_run * tokens
    return score_flops(model, whole.flops_per_token, *runs)


class _MadeUpScores:
    """Equal scores for all layers and cuts; counts what it would take to measure them.

    As `analysis.layer_scores.MeasuredScores`, which measures none twice.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._scored: set[Cut] = set()
        self._is_measured = False
        self.layers_run = self.heads_run = 0  # for each token

    @property
    def influence(self) -> Sequence[float]:
        self._measure_distances()
        return [0.0] * self._total

    @property
    def norm_ratio(self) -> Sequence[float]:
        return self.influence

    @property
    def angles(self) -> Mapping[Block, float]:
        self._measure_distances()
        lengths = range(1, self._total + 1)
        return {(s, n): 0.0 for n in lengths for s in range(self._total - n + 1)}

    def divergences(self, cuts: Sequence[Cut]) -> list[float]:
        self._measure_distances()
        missing = [cut for cut in cuts if cut not in self._scored]
        if missing:
            order = walk_order(self._total, missing)
            self.layers_run += count_layers(order)
            self.heads_run += len(order)
            self._scored |= set(missing)
        return [0.0] * len(cuts)

    def in_memory(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _measure_distances(self) -> None:
        if not self._is_measured:
            self._is_measured = True
            self.layers_run += self._total  # one pass of the model
            self.heads_run += 1
