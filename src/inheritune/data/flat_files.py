"""Open token files that other programs wrote: datatrove's ``.ds``, and flat ``.bin`` files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.errors import DataError
from inheritune.system.reading import open_regular_file, read_regular_file

_LITGPT = b"LITPKDS"  # magic; then version as 8 bytes, type as 1, ids in a chunk as 8
_LITGPT_HEADER = 24
_LITGPT_TYPES = {8: "<u2", 4: "<i4", 3: "<i2"}
_LLM_C = 20240520  # the first of 256 int32; then version and number of ids
_LLM_C_HEADER = 1024
_CHUNK = 1 << 22  # ids looked at at a time
_MOST_METADATA, _MOST_INDEX = 1 << 20, 1 << 33  # bytes; the index has 8 for each document
_FORMATS = "Give a .bin file of uint16 or uint32 ids, or a .ds file of datatrove."


@dataclass(frozen=True)
class FlatFile:
    """A file of ids."""

    path: Path
    format: str  # ``"flat"``, ``"litgpt"``, ``"llm.c"`` or ``"datatrove"``
    width: int  # bytes of an id
    ids: NDArray[Any]  # (n,) unsigned, mapped from disk
    ends: NDArray[np.int64] | None  # of documents, from the index of a ``.ds`` file; None: at EOS

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
            size, head = path.stat().st_size, stream.read(_LLM_C_HEADER)
        kind, offset, declared, count = _header(path, head)
        ends = None
        if path.name.endswith(".ds"):
            kind, declared, ends = "datatrove", _datatrove_width(path), _datatrove_ends(path)
    except OSError as error:
        beside = error.filename or path
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot read {beside}: {reason}.", "Correct the path.") from error
    wide = width or declared or _likely_width(path, size - offset, offset, rows)
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
    return FlatFile(path, kind, wide, ids, ends)


def _cover(ends: NDArray[np.int64], count: int) -> bool:
    """Whether ends of documents are in order, and the last one is that of all ids."""
    in_order = not (ends[1:] < ends[:-1]).any()  # a difference of int64 could overflow
    return len(ends) > 0 and bool(in_order and ends[0] >= 0 and ends[-1] == count)


def _header(path: Path, head: bytes) -> tuple[str, int, int | None, int | None]:
    """Return format, bytes before the ids, bytes of an id, number of ids; None: not in the file."""
    if head[:7] == _LITGPT:
        kind = _LITGPT_TYPES.get(head[15]) if len(head) >= _LITGPT_HEADER else None
        if int.from_bytes(head[7:15], "little") != 1 or kind is None:
            raise DataError(
                f"{path} is a litgpt file of ids in an unknown version or type.", _FORMATS
            )
        return "litgpt", _LITGPT_HEADER, int(kind[-1]), None
    if len(head) == _LLM_C_HEADER:
        magic, version, count = np.frombuffer(head[:12], dtype="<i4").tolist()
        if (magic, version) == (_LLM_C, 1):
            return "llm.c", _LLM_C_HEADER, 2, count
    if head[:8] == b"INHTTOKS":
        raise DataError(f"{path} is a shard of prepared tokens.", "Name its directory instead.")
    return "flat", 0, None, None


def _datatrove_width(path: Path) -> int | None:
    """Read the bytes of an id from the metadata beside a file: text, or JSON in newer versions."""
    beside = path.with_name(path.name + ".metadata")
    if not beside.exists():
        return None
    lines = _read(beside, _MOST_METADATA).decode(errors="replace").splitlines()
    try:
        value = json.loads("\n".join(lines))
        size = value.get("token_size") if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        # The tokenizer's name and the width, then the number of ids, each on a line.
        size = lines[0].rpartition("|")[2] if lines else None
    return {"2": 2, "4": 4}.get(str(size))


def _datatrove_ends(path: Path) -> NDArray[np.int64] | None:
    beside = path.with_name(path.name + ".index")
    if not beside.exists():
        return None
    content = _read(beside, _MOST_INDEX)
    if len(content) % 8:
        raise DataError(f"{beside} has {len(content)} bytes, not 8 each.", "Fetch it again.")
    return np.frombuffer(content, dtype="<u8").astype(np.int64)


def _read(beside: Path, limit: int) -> bytes:
    try:
        return read_regular_file(beside, limit)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(beside)) from error


def _likely_width(path: Path, size: int, offset: int, rows: int) -> int:
    """Guess four bytes where all ids then have a row, else two.

    Two ids of two bytes, read as one of four, exceed every embedding unless the second one is 0.
    """
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
