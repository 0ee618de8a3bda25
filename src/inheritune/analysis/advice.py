"""How many first layers to inherit, as the rank of the reference's attention advises."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from inheritune.analysis.lazy import lazy_group

__all__ = ["Advice", "advise"]


@dataclass(frozen=True)
class Advice:
    """A number of layers to begin with. It decides nothing by itself.

    Attributes:
        paper: Half of the reference's, as the papers begin.
        advice: The fewest whose rest is a lazy group; half where there are none.
        reason: Why, in words.
    """

    paper: int
    advice: int
    reason: str


def advise(max_ranks: Mapping[int, float], total: int, safe: Collection[int]) -> Advice:
    """The smallest n such that layers n to N - 1 are a lazy group and n is a safe cut point.

    Args:
        max_ranks: MaxRank by the number of the layer, of those that have attention.
        total: N, layers of the reference.
        safe: Numbers of first layers at which it can be cut without breaking a pattern.
    """
    half = max(1, total // 2)
    for layers in range(1, total):
        if layers in safe and lazy_group(max_ranks, layers, total):
            group = [rank for layer, rank in max_ranks.items() if layer >= layers]
            mean = sum(group) / len(group)
            reason = f"layers {layers} to {total - 1} are a lazy group: their mean rank is "
            return Advice(half, layers, f"{reason}{mean:.2f}")
    return Advice(half, half, "no last layers are a lazy group: half of them, as the papers begin")
