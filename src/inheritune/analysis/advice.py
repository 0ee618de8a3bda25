"""Advise how many first layers to inherit, from the attention rank of the reference's layers."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass


def lazy_group(max_ranks: Mapping[int, float], first: int, total: int) -> bool:
    """Tell whether layers first to total - 1 are a lazy group: their mean MaxRank is below 2.

    Args:
        max_ranks: MaxRank by layer. Layers without attention do not count; a group without any
            attention is not lazy.
        first: First layer of the group.
        total: Layers of the model.
    """
    group = [rank for layer, rank in max_ranks.items() if first <= layer < total]
    return bool(group) and math.floor(sum(group) / len(group)) == 1


def laziest_first(max_ranks: Mapping[int, float]) -> tuple[int, ...]:
    """Sort layers by MaxRank, lowest first; among equal ones, the later layer comes first."""
    return tuple(sorted(max_ranks, key=lambda layer: (max_ranks[layer], -layer)))


@dataclass(frozen=True)
class Advice:
    """A number of layers to begin with."""

    paper: int  # half of the reference's layers, with which the papers begin
    advice: int  # fewest first layers above which all are a lazy group; half if there is none
    reason: str  # reason for the advice, in words


def advise(max_ranks: Mapping[int, float], total: int, safe: Collection[int]) -> Advice:
    """Find the smallest n such that layers n to N - 1 are a lazy group and n is a safe cut point.

    Args:
        max_ranks: MaxRank by layer, of the layers that have attention.
        total: N, layers of the reference.
        safe: Numbers of first layers at which a cut breaks no pattern of layers.
    """
    half = max(1, total // 2)
    for layers in range(1, total):
        if layers in safe and lazy_group(max_ranks, layers, total):
            group = [rank for layer, rank in max_ranks.items() if layer >= layers]
            mean = sum(group) / len(group)
            reason = f"layers {layers} to {total - 1} are a lazy group: their mean rank is "
            return Advice(half, layers, f"{reason}{mean:.2f}")
    return Advice(
        half, half, "no group of last layers is lazy, so half of all layers, as in the papers"
    )
