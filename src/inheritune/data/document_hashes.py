"""Hashes of the documents of a corpus, on disk: memory does not grow with their number."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["DocumentHashes"]

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
