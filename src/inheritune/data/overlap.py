"""How much of the held-out text was also trained on: exact documents and shared 13-grams.

Hashes of the documents of a corpus, on disk: memory does not grow with their number.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.tokens import TokenStream

__all__ = ["NGRAM", "DocumentHashes", "duplicate_share", "ngram_share"]

NGRAM = 13
_MAX_VAL_NGRAMS = 1 << 20
_CHUNK = 1 << 21  # ids read at a time
_TABLE_BITS = 24


def duplicate_share(val: NDArray[np.uint64], train: Iterable[NDArray[np.uint64]]) -> float:
    """Share of held-out documents whose hash is among those of the training documents.

    Args:
        val: (m,) hashes of the held-out documents' texts.
        train: Hashes of the training documents' texts, in any number of pieces.

    Returns:
        In [0, 1]; 0 without held-out documents.
    """
    found = np.zeros(len(val), dtype=bool)
    for piece in train:
        found |= np.isin(val, piece)
    return float(found.mean()) if len(val) else 0.0


def ngram_share(
    val: TokenStream,
    train: TokenStream,
    eos: int,
    on_ids: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Share of held-out 13-grams of token ids that occur anywhere in the training stream.

    An n-gram never spans two documents. Beyond 2^20 held-out n-grams an even sample of them is
    looked up; the training stream is always read whole, in chunks, so that memory is bounded.

    Args:
        val: Held-out ids.
        train: Training ids.
        eos: Id that ends a document.
        on_ids: Told after every chunk how many training ids were looked at; may raise to stop.

    Returns:
        ``{"ngram", "val_ngrams", "share", "method"}``; the share is in [0, 1], and None where no
        held-out document is 13 tokens long.
    """
    hashes = _val_hashes(val, eos)
    wanted, counts = np.unique(hashes, return_counts=True)
    found = np.zeros(len(wanted), dtype=bool)
    # A look into a table of bits spares most of the training n-grams the binary search.
    shift = np.uint64(64 - _TABLE_BITS)
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[wanted >> shift] = True
    for start in range(0, train.num_ids if len(wanted) else 0, _CHUNK):
        stop = min(start + _CHUNK + NGRAM - 1, train.num_ids)
        seen = _hashes(train.ids(start, stop))
        seen = seen[table[seen >> shift]]
        at = np.minimum(np.searchsorted(wanted, seen), len(wanted) - 1)
        found[at[wanted[at] == seen]] = True
        on_ids(min(start + _CHUNK, train.num_ids))
    share = float(counts[found].sum() / counts.sum()) if len(wanted) else None
    return {
        "ngram": NGRAM,
        "val_ngrams": len(hashes),
        "share": share,
        "method": f"share of {NGRAM}-grams of token ids within held-out documents that occur in "
        f"the training tokens; at most {_MAX_VAL_NGRAMS} held-out {NGRAM}-grams, evenly spaced",
    }


def _val_hashes(val: TokenStream, eos: int) -> NDArray[np.uint64]:
    """Hashes of held-out n-grams inside one document, thinned evenly to the limit."""
    stride = -(-max(1, val.num_ids) // _MAX_VAL_NGRAMS)
    parts = [np.empty(0, dtype=np.uint64)]
    for start in range(0, val.num_ids, _CHUNK):
        ids = val.ids(start, min(start + _CHUNK + NGRAM - 1, val.num_ids))
        if len(ids) < NGRAM:
            continue
        ends = np.concatenate(([0], np.cumsum(ids == eos)))
        within = ends[NGRAM:] == ends[:-NGRAM]
        kept = (start + np.arange(len(within))) % stride == 0
        parts.append(_hashes(ids)[within & kept])
    return np.concatenate(parts)


def _hashes(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of every window of NGRAM ids: multilinear, one fixed odd factor a place."""
    windows = len(ids) - NGRAM + 1
    if windows < 1:
        return np.empty(0, dtype=np.uint64)
    values = ids.astype(np.uint64) + np.uint64(1)
    total = np.zeros(windows, dtype=np.uint64)
    factor = 0
    for place in range(NGRAM):
        factor = (factor + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = factor
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        total += values[place : place + windows] * np.uint64((mixed ^ (mixed >> 31)) | 1)
    return total


_HELD = 1 << 20  # hashes in memory at a time: 8 MB
_COUNTED = 1 << 23  # hashes compared with each other at a time: 64 MB


class DocumentHashes:
    """A growing list of 64-bit hashes.

    Args:
        path: The file they are kept in, eight bytes each; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = array("Q")

    def add(self, value: int) -> None:
        """Append one."""
        self._new.append(value)
        if len(self._new) == _HELD:
            self._write()

    def flush(self) -> int:
        """Have all of them on disk; how many there are."""
        self._write()
        with self._path.open("ab") as stream:
            os.fsync(stream.fileno())
        return self.stored()

    def stored(self) -> int:
        """How many the file holds."""
        return self._path.stat().st_size // 8 if self._path.exists() else 0

    def cut(self, count: int) -> None:
        """Keep the first ones only."""
        os.truncate(self._path, 8 * count)

    def chunks(self) -> Iterator[NDArray[np.uint64]]:
        """All of them, in order, a million at a time."""
        self._write()
        with self._path.open("rb") as stream:
            while data := stream.read(8 * _HELD):
                yield np.frombuffer(data, dtype=np.uint64)

    def repeated_share(self) -> float:
        """Share of the documents that repeat an earlier one; in [0, 1)."""
        self._write()
        count, distinct = self.stored(), 0
        passes = max(1, -(-count // _COUNTED))
        for turn in range(passes):  # equal hashes meet in the same pass
            parts = [chunk[chunk % np.uint64(passes) == turn] for chunk in self.chunks()]
            distinct += len(np.unique(np.concatenate(parts))) if parts else 0
        return 1 - distinct / count if count else 0.0

    def _write(self) -> None:
        with self._path.open("ab") as stream:
            self._new.tofile(stream)
        self._new = array("Q")
