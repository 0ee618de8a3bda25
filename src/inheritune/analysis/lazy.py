"""Lazy layers and groups of them, by their attention rank."""

import math
from collections.abc import Mapping

__all__ = ["laziest_first", "lazy_group"]


def lazy_group(max_ranks: Mapping[int, float], first: int, total: int) -> bool:
    """Whether layers first to total - 1 are a lazy group: their mean MaxRank is below 2.

    Args:
        max_ranks: MaxRank by the number of the layer. Layers without attention do not count; a
            group of nothing else is none.
        first: Of the group.
        total: Layers of the model.
    """
    group = [rank for layer, rank in max_ranks.items() if first <= layer < total]
    return bool(group) and math.floor(sum(group) / len(group)) == 1


def laziest_first(max_ranks: Mapping[int, float]) -> tuple[int, ...]:
    """Layers by MaxRank, the lowest first; of equals, the later one first.

    Args:
        max_ranks: By the number of the layer, of those that have attention.
    """
    return tuple(sorted(max_ranks, key=lambda layer: (max_ranks[layer], -layer)))
