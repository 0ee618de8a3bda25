"""Open files of token ids that other programs wrote, and check every id."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.flat_layouts import HEAD_BYTES, layout_of
from inheritune.errors import DataError, reason_of
from inheritune.system.reading import open_regular_file

_CHUNK = 1 << 22  # ids looked at at a time
_MOST_OF_TWO_BYTES = 1 << 16  # rows that ids of two bytes can name


@dataclass(frozen=True)
class FlatFile:
    """A file of ids."""

    path: Path
    format: str  # as in `flat_layouts.Layout`
    width: int  # bytes of an id
    ids: NDArray[Any]  # (n,) unsigned, mapped from disk
    ends: NDArray[np.int64] | None  # of documents, from an index; None: at EOS

    def documents(self, eos: int) -> Iterator[tuple[int, int]]:
        """Yield begin and end of every document, EOS included where it has one."""
        begin = 0
        least = 2 if self.format == "litgpt" else 1  # it fills its last chunk with EOS
        for end in self._ends(eos):
            if end >= begin + least:
                yield begin, end
            begin = end
        if begin < len(self.ids):
            yield begin, len(self.ids)

    def count(self, token: int) -> int:
        """Count how often an id occurs."""
        pieces = (self.ids[start : start + _CHUNK] for start in range(0, len(self.ids), _CHUNK))
        return sum(int((piece == token).sum()) for piece in pieces)

    def _ends(self, eos: int) -> Iterator[int]:
        if self.ends is not None:
            yield from self.ends.tolist()
            return
        for start in range(0, len(self.ids), _CHUNK):
            ends = np.flatnonzero(self.ids[start : start + _CHUNK] == eos) + start + 1
            yield from ends.tolist()


def open_flat_file(path: Path, rows: int, width: int | None = None) -> FlatFile:
    """Recognize the format of a file of ids, and check every id.

    Args:
        path: Ends in ``.ds`` or ``.bin``.
        rows: Rows of the embedding; every id must be below.
        width: Bytes of an id, 2 or 4; None: what the file says, or else what its ids allow.

    Raises:
        DataError: The file is of no such format, is cut short, or holds an id without a row.
    """
    try:
        with open_regular_file(path) as stream:
            size, head = path.stat().st_size, stream.read(HEAD_BYTES)
        layout = layout_of(path, head, size)
    except OSError as error:
        beside = error.filename or path
        reason = reason_of(error)
        raise DataError(f"cannot read {beside}: {reason}.", "Correct the path.") from error
    if None not in (width, layout.width) and width != layout.width:
        raise DataError(
            f"{path} says that its ids have {layout.width} bytes, --dtype says {width}.",
            "Leave out --dtype.",
        )
    offset, count, ends = layout.offset, layout.count, layout.ends
    wide = width or layout.width or _likely_width(path, size - offset, offset, rows)
    if size <= offset or (size - offset) % wide:
        raise DataError(
            f"{path} has {size - offset} bytes of ids, no whole number of {wide} bytes each.",
            "Fetch the file again, or say its --dtype.",
        )
    ids: NDArray[Any] = np.memmap(path, dtype=f"<u{wide}", mode="r", offset=offset)
    if count is not None:
        if not 0 < count <= len(ids):
            raise DataError(
                f"{path} has {len(ids)} ids, its header speaks of {count}.", "Fetch it again."
            )
        ids = ids[:count]
    if ends is not None and not _cover(ends, len(ids)):
        raise DataError(
            f"{path}.index does not fit: {path} has {len(ids)} ids.", "Fetch both again."
        )
    _check_range(path, ids, rows)
    return FlatFile(path, layout.format, wide, ids, ends)


def _cover(ends: NDArray[np.int64], count: int) -> bool:
    """Whether ends of documents are in order, and the last one is that of all ids."""
    in_order = not (ends[1:] < ends[:-1]).any()  # a difference of int64 could overflow
    return len(ends) > 0 and bool(in_order and ends[0] >= 0 and ends[-1] == count)


def _likely_width(path: Path, size: int, offset: int, rows: int) -> int:
    """Decide how many bytes an id has, where the file does not say.

    Four where two could not name every row: there, any two bytes would be an id. Else four where
    all ids then have a row: two ids of two bytes, read as one of four, are above
    65,535 unless the second one is 0.
    """
    if rows > _MOST_OF_TWO_BYTES:
        return 4
    if size % 4 or size == 0:
        return 2
    ids = np.memmap(path, dtype="<u4", mode="r", offset=offset)
    return 4 if int(ids[:_CHUNK].max()) < rows else 2


def _check_range(path: Path, ids: NDArray[Any], rows: int) -> None:
    for start in range(0, len(ids), _CHUNK):
        outside = np.flatnonzero(ids[start : start + _CHUNK] >= rows)
        if len(outside):
            offset = start + int(outside[0])
            raise DataError(
                f"{path} holds id {ids[offset]} at offset {offset}, the embedding has {rows} rows.",
                "Name the tokenizer that made the file, or say its --dtype.",
            )
