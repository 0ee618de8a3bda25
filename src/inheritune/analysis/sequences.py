"""The sequences that models are looked at with: the same for every model and every start."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.tokens import TokenStream

__all__ = ["SEED", "Sequences", "draw_sequences"]

SEED = 0


@dataclass(frozen=True)
class Sequences:
    """Some sequences of a text.

    Attributes:
        ids: (N, T) int64.
        asked: How many were asked for; N may be less.
        bos: Id that each begins with; None: they begin in the middle of the text, without one.
        source: What they were drawn from, in words.
    """

    ids: NDArray[np.int64]
    asked: int
    bos: int | None
    source: str

    def as_json(self) -> dict[str, Any]:
        """What a reader must know of them."""
        return {
            "sequences": len(self.ids),
            "asked": self.asked,
            "tokens_per_sequence": self.ids.shape[1],
            "seed": SEED,
            "bos": self.bos is not None,
            "source": self.source,
        }


def draw_sequences(
    stream: TokenStream | NDArray[np.int64],
    count: int,
    length: int,
    bos: int | None,
    source: str,
) -> Sequences:
    """Draw windows that do not overlap, by a fixed seed, in the order of the text.

    Args:
        stream: Token ids, one after another.
        count: How many are wanted; fewer where the stream has not so many.
        length: T, tokens of each, the BOS counted.
        bos: Id to begin each with; None: none.
        source: For the record.

    Returns:
        At least no sequence.
    """
    own = length - (bos is not None)
    total = (len(stream) if isinstance(stream, np.ndarray) else stream.num_ids) // own
    chosen = np.random.default_rng(SEED).permutation(total)[:count]
    ids = np.empty((len(chosen), length), dtype=np.int64)
    for row, window in zip(ids, np.sort(chosen), strict=True):
        start = int(window) * own
        stop = start + own
        row[length - own :] = (
            stream[start:stop] if isinstance(stream, np.ndarray) else stream.ids(start, stop)
        )
        if bos is not None:
            row[0] = bos
    return Sequences(ids, count, bos, source)
