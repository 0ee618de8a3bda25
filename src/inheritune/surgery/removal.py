"""Choose the layers to remove from a reference by scores that were measured on it.

N layers of the reference, n to keep, k = N - n to remove. A cut is the tuple of the kept layers,
ascending. h_i: the hidden state after layer i; h_-1: the embeddings.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

Cut = tuple[int, ...]
Block = tuple[int, int]  # first layer, and number of layers


class LayerScores(Protocol):
    """Scores of a reference's layers on calibration text, measured when they are asked for."""

    @property
    def influence(self) -> Sequence[float]:
        """1 - cosine of each layer's input and output, mean over tokens."""

    @property
    def norm_ratio(self) -> Sequence[float]:
        """Norm of each layer's output over that of its input, mean over tokens."""

    @property
    def angles(self) -> Mapping[Block, float]:
        """Angle between input and output of each block, over pi, mean over tokens."""

    def divergences(self, cuts: Sequence[Cut]) -> list[float]:
        """KL(reference || cut) of each cut, nats per token; infinite where it is not finite."""

    def in_memory(self) -> AbstractContextManager[None]:
        """Keep the model in memory, once it is loaded, while the block runs."""


def cheapest(scores: LayerScores, cuts: Iterable[Cut]) -> Cut:
    """Return the cut of the lowest KL divergence; of equal ones, the first."""
    listed = list(cuts)
    divergences = scores.divergences(listed)
    return listed[divergences.index(min(divergences))]


def without(total: int, removed: Iterable[int]) -> Cut:
    """List the layers that are kept when some of 0 to ``total`` - 1 are removed."""
    gone = set(removed)
    return tuple(layer for layer in range(total) if layer not in gone)


def block(scores: LayerScores, total: int, count: int) -> Sequence[int]:
    """Remove the cheapest contiguous block; the first and the last layer stay.

    Sources: Minitron-2, arXiv 2408.11796; LLM-Streamline, arXiv 2403.19135.
    """
    if count == total:
        return range(total)
    return cheapest(scores, block_cuts(total, total - count))


def block_cuts(total: int, length: int) -> list[Cut]:
    """List the cuts that leave out one block of ``length`` layers, and neither end."""
    starts = range(1, total - length)
    return [without(total, range(start, start + length)) for start in starts]


def greedy(scores: LayerScores, total: int, count: int) -> Sequence[int]:
    """Remove one layer at a time, each time the cheapest; the first and the last layer stay.

    Sources: SLEB, arXiv 2402.09025; KLPatch, arXiv 2607.08170.
    """
    cut = tuple(range(total))
    if count < total:  # both ends as well, so that what each layer is worth can be shown
        scores.divergences([without(total, [layer]) for layer in cut])
    while len(cut) > count:
        cut = cheapest(scores, [cut[:place] + cut[place + 1 :] for place in range(1, len(cut) - 1)])
    return cut


def influence(scores: LayerScores, total: int, count: int) -> Sequence[int]:
    """Keep the layers of the highest block influence, 1 - cos(h_(i-1), h_i).

    Source: ShortGPT, arXiv 2403.03853.
    """
    return _highest(scores.influence, total, count)


def norm_ratio(scores: LayerScores, total: int, count: int) -> Sequence[int]:
    """Keep the layers of the highest ratio of norms, ‖h_i‖ / ‖h_(i-1)‖.

    Source: Ministral 3, arXiv 2601.08584.
    """
    return _highest(scores.norm_ratio, total, count)


def _highest(values: Sequence[float], total: int, count: int) -> Sequence[int]:
    return sorted(sorted(range(total), key=lambda layer: (-values[layer], layer))[:count])


def angular(scores: LayerScores, total: int, count: int) -> Sequence[int]:
    """Remove the block [s, s + k) of the smallest angle between h_(s-1) and h_(s+k-1).

    Source: Gromov et al., arXiv 2403.17887; here over all tokens, not over the last one.
    """
    length = total - count
    if not length:
        return range(total)
    start = min(range(count + 1), key=lambda start: scores.angles[start, length])
    return without(total, range(start, start + length))


def give_back(scores: LayerScores, total: int, cut: Cut, count: int) -> Cut:
    """Put removed layers back, one at a time, each time the one that lowers the KL most."""
    while len(cut) < count:
        missing = without(total, cut)
        cut = cheapest(scores, [tuple(sorted((*cut, layer))) for layer in missing])
    return cut
