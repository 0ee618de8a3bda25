"""Which of several sources gives the next document, so that each gets its share of the tokens."""

import math
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["Mixture"]


class Mixture:
    """Shares of several sources.

    The next document comes from the source that is furthest behind its share. That depends on the
    tokens taken so far and on nothing else, so that the order is the same on every machine; and
    after every document no source is ahead of its share by more than its longest document.

    Args:
        weights: Above 0, one for each source; only their ratios count.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(repr(weight)) for weight in weights]  # 4.5, not the float beside it
        shared = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * shared) for weight in exact]
        multiple = math.lcm(*whole)
        self._factors = [multiple // weight for weight in whole]

    def next_source(self, taken: Sequence[int]) -> int:
        """Index of the source that gives the next document; of equals, the first.

        Args:
            taken: Training tokens that each source has given so far.
        """
        behind = [tokens * factor for tokens, factor in zip(taken, self._factors, strict=True)]
        return behind.index(min(behind))
