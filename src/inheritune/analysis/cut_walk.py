"""Order cuts so that they share layers, and count the layers that are then run; without torch.

Layers that two cuts have in common from the input on are run once for both. So all cuts that leave
out one of N layers take N²/2 layers and N + 1 heads, not N² layers.
"""

from collections.abc import Sequence

from inheritune.surgery.removal import Cut


def walk_order(total: int, cuts: Sequence[Cut]) -> list[Cut]:
    """List the whole model and cuts so that those that begin alike stand together.

    The longest first, so the whole model stands first.
    """
    return sorted({tuple(range(total)), *cuts}, key=lambda cut: (*cut, total))


def common_layers(order: Sequence[Cut]) -> list[int]:
    """Count the layers that each cut has in common with the one before it, from the input on."""
    return [0, *map(_common, order[:-1], order[1:])]


def count_layers(order: Sequence[Cut]) -> int:
    """Count the layers of one walk along all cuts."""
    return sum(map(len, order)) - sum(common_layers(order))


def _common(one: Cut, other: Cut) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
