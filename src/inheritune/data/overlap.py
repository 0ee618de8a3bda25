"""Measure how much held-out text was also trained on: whole documents and 13-grams of tokens."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.tokens import TokenStream
from inheritune.system.environment import usable_cores

NGRAM = 13
_MAX_VAL_NGRAMS = 1 << 20
_CHUNK = 1 << 21  # ids read at a time by each thread
_MOST_THREADS = 16  # 150 MB each
_TABLE_BITS = 24
_BUFFERED = 1 << 20  # hashes in memory at a time: 8 MB
_COMPARED = 1 << 23  # hashes compared with each other at a time: 64 MB


class DocumentHashes:
    """A growing list of 64-bit hashes on disk: memory does not grow with the corpus.

    The file at ``path`` has eight bytes for each hash, and is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = array("Q")

    def add(self, value: int) -> None:
        """Append one hash."""
        self._new.append(value)
        if len(self._new) == _BUFFERED:
            self._write()

    def take(self, other: "DocumentHashes") -> None:
        """Append all hashes of another list."""
        self._write()
        with self._path.open("ab") as stream:
            for piece in other.chunks():
                piece.tofile(stream)

    def flush(self) -> int:
        """Sync all hashes to the disk and return their number."""
        self._write()
        with self._path.open("ab") as stream:
            os.fsync(stream.fileno())
        return self.stored()

    def stored(self) -> int:
        """Return the number of hashes in the file."""
        return self._path.stat().st_size // 8 if self._path.exists() else 0

    def cut(self, count: int) -> None:
        """Keep the first hashes only."""
        os.truncate(self._path, 8 * count)

    def chunks(self) -> Iterator[NDArray[np.uint64]]:
        """Read all hashes in order, a million at a time."""
        self._write()
        with self._path.open("rb") as stream:
            while data := stream.read(8 * _BUFFERED):
                yield np.frombuffer(data, dtype=np.uint64)

    def repeated_share(self) -> float:
        """Return the share of documents that repeat an earlier one, in [0, 1)."""
        self._write()
        count, distinct = self.stored(), 0
        passes = max(1, -(-count // _COMPARED))
        for turn in range(passes):  # equal hashes meet in the same pass
            parts = [chunk[chunk % np.uint64(passes) == turn] for chunk in self.chunks()]
            distinct += len(np.unique(np.concatenate(parts))) if parts else 0
        return 1 - distinct / count if count else 0.0

    def _write(self) -> None:
        with self._path.open("ab") as stream:
            self._new.tofile(stream)
        self._new = array("Q")


def document_overlap(val: DocumentHashes, train: DocumentHashes) -> dict[str, float]:
    """Compare the documents of both splits by the hashes of their texts.

    Returns:
        ``duplicate_documents``, the share of held-out documents that are also training documents;
        ``repeated_documents``, the share of training documents that repeat an earlier one.
    """
    val_hashes = np.concatenate([np.empty(0, dtype=np.uint64), *val.chunks()])
    return {
        "duplicate_documents": duplicate_share(val_hashes, train.chunks()),
        "repeated_documents": train.repeated_share(),
    }


def duplicate_share(val: NDArray[np.uint64], train: Iterable[NDArray[np.uint64]]) -> float:
    """Return the share of (m,) held-out hashes that are in any piece of the training hashes."""
    is_duplicate = np.zeros(len(val), dtype=bool)
    for piece in train:
        is_duplicate |= np.isin(val, piece)
    return float(is_duplicate.mean()) if len(val) else 0.0


def ngram_share(
    val: TokenStream,
    train: TokenStream,
    eos: int,
    on_ids: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Return the share of held-out 13-grams of token ids that occur in the training stream.

    An n-gram never spans two documents. Beyond 2^20 held-out n-grams an even sample of them is
    looked up; the training stream is always read whole, in chunks, so that memory is bounded, by
    one thread for each core.

    Args:
        eos: Id that ends a document.
        on_ids: Called after every chunk with the number of training ids read; may raise.

    Returns:
        ``{"ngram", "val_ngrams", "share", "method"}``; the share is in [0, 1], and None where no
        held-out document is 13 tokens long.
    """
    hashes = _val_hashes(val, eos)
    distinct, counts = np.unique(hashes, return_counts=True)
    in_train = np.zeros(len(distinct), dtype=bool)
    # Most training n-grams are ruled out by their first 24 bits and spared the binary search.
    shift = np.uint64(64 - _TABLE_BITS)
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[distinct >> shift] = True

    def found_from(start: int) -> NDArray[np.intp]:
        stop = min(start + _CHUNK + NGRAM - 1, train.num_ids)
        candidates = _hashes(train.ids(start, stop))
        candidates = candidates[table[candidates >> shift]]
        places = np.minimum(np.searchsorted(distinct, candidates), len(distinct) - 1)
        return np.unique(places[distinct[places] == candidates])

    starts = range(0, train.num_ids if len(distinct) else 0, _CHUNK)
    with ThreadPoolExecutor(min(usable_cores(), _MOST_THREADS)) as threads:
        try:
            for start, places in zip(starts, threads.map(found_from, starts), strict=True):
                in_train[places] = True
                train.forget(start + _CHUNK)
                on_ids(min(start + _CHUNK, train.num_ids))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # stopped: nobody asks for the rest
            raise
    share = float(counts[in_train].sum() / counts.sum()) if len(distinct) else None
    return {
        "ngram": NGRAM,
        "val_ngrams": len(hashes),
        "share": share,
        "method": f"share of {NGRAM}-grams of token ids within held-out documents that occur in "
        f"the training tokens; at most {_MAX_VAL_NGRAMS:,} held-out {NGRAM}-grams, evenly spaced",
    }


def _val_hashes(val: TokenStream, eos: int) -> NDArray[np.uint64]:
    """Hash the held-out n-grams that lie within one document, thinned evenly to the limit."""
    stride = -(-max(1, val.num_ids) // _MAX_VAL_NGRAMS)
    parts = [np.empty(0, dtype=np.uint64)]
    for start in range(0, val.num_ids, _CHUNK):
        ids = val.ids(start, min(start + _CHUNK + NGRAM - 1, val.num_ids))
        if len(ids) < NGRAM:
            continue
        ends = np.concatenate(([0], np.cumsum(ids == eos)))
        within = ends[NGRAM:] == ends[:-NGRAM]
        in_sample = (start + np.arange(len(within))) % stride == 0
        parts.append(_hashes(ids)[within & in_sample])
    return np.concatenate(parts)


def _hashes(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash every window of NGRAM ids to 64 bits: sum_i factor_i (id_i + 1) modulo 2^64."""
    windows = len(ids) - NGRAM + 1
    if windows < 1:
        return np.empty(0, dtype=np.uint64)
    values = ids.astype(np.uint64) + np.uint64(1)
    total = np.zeros(windows, dtype=np.uint64)
    seed = 0
    for place in range(NGRAM):
        # The fixed odd factors are the outputs of SplitMix64. Steele, Lea, Flood 2014
        seed = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        total += values[place : place + windows] * np.uint64((mixed ^ (mixed >> 31)) | 1)
    return total
