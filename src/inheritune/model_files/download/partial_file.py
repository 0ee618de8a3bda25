"""Keep a file of which only some byte ranges are present, and a journal of these ranges.

The file has its full size from the start; where the file system has sparse files, missing bytes
take no space. A range is journaled after its bytes were synced, so the journal of a killed process
can be trusted. It is JSON Lines: commit, ETag and size of the file, then ``[start, end]`` for each
range.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from inheritune.errors import DataError
from inheritune.model_files.copy import write_all
from inheritune.model_files.download.hub import cache_errors
from inheritune.system.files import sync_directory
from inheritune.system.strict_json import OWN_FILE, parse_json

Range = tuple[int, int]
"""First byte, and the byte after the last one."""

_BINARY = getattr(os, "O_BINARY", 0)


# --- arithmetic on ranges ---


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and join those that overlap or touch."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def subtracted(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """Return the bytes of ``ranges`` that are not in ``taken``, as merged ranges."""
    result: list[Range] = []
    holes = merged(taken)
    first = 0  # holes before this one end before every range that is left
    for start, end in merged(ranges):
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        for hole in range(first, len(holes)):
            if holes[hole][0] >= end:
                break
            result.append((start, holes[hole][0]))
            start = holes[hole][1]
        result.append((start, end))
    return merged(result)


def bridged(ranges: Sequence[Range], budget: int, widest: int) -> list[Range]:
    """Join merged ranges over small gaps: fewer requests for a few more bytes.

    Args:
        budget: Most bytes of all joined gaps together; the smallest gaps are joined first.
        widest: Most bytes of one gap.
    """
    gaps = [(before[1], after[0]) for before, after in pairwise(ranges)]
    joined = list(ranges)
    for start, end in sorted(gaps, key=lambda gap: (gap[1] - gap[0], gap)):
        budget -= end - start
        if budget < 0 or end - start > widest:
            break
        joined.append((start, end))
    return merged(joined)


def pieces(ranges: Iterable[Range], size: int) -> list[Range]:
    """Cut ranges into parts of at most ``size`` bytes, in order."""
    return [(at, min(at + size, end)) for start, end in ranges for at in range(start, end, size)]


def byte_count(ranges: Iterable[Range]) -> int:
    """Count the bytes of ranges that do not overlap."""
    return sum(end - start for start, end in ranges)


# --- the file and its journal ---


class PartialFile:
    """One file of a partial download; threads of one process may write different ranges at once.

    Args:
        name: Path on the server, relative and with ``/``.
        size: Bytes of the whole file. A journal of another size, commit or ETag is ignored.
    """

    def __init__(self, name: str, path: Path, journal: Path, size: int, commit: str) -> None:
        self.name, self.path, self.size = name, path, size
        self.etag: str | None = None  # the server's name for the content, from its first answer on
        self.present: list[Range] = []  # merged
        self.ranges_refused = False  # the server answered a range request with the whole file
        self.whole = threading.Lock()  # held by the one thread that then fetches the whole file
        self._journal, self._commit = journal, commit
        self._lock = threading.Lock()
        self._valid_bytes = 0  # of the journal; a torn last line is cut off before the next write
        self._discarded = False
        self._read_journal()

    def _read_journal(self) -> None:
        try:
            if self.path.lstat().st_size != self.size or not self.path.is_file():
                return
            lines = self._journal.read_bytes().split(b"\n")[:-1]  # the last one has no end: torn
        except OSError:
            return
        head = _parsed(lines[0]) if lines else None
        if not isinstance(head, dict) or "etag" not in head:
            return
        if (head.get("commit"), head.get("size")) != (self._commit, self.size):
            return
        self.etag = str(head["etag"])
        self._valid_bytes = len(lines[0]) + 1
        ranges = []
        for line in lines[1:]:
            if (entry := _range(line, self.size)) is None:
                break
            ranges.append(entry)
            self._valid_bytes += len(line) + 1
        self.present = merged(ranges)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Create the file in its full size if needed; yield a descriptor for one thread."""
        with self._lock, cache_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            if not self._valid_bytes and self._journal.exists():
                # The journal is of another version, or of a deleted file. It must go first: the new
                # file is all zeros, but will soon have the size that the journal states.
                self._journal.unlink()
                sync_directory(self._journal.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        try:
            with cache_errors(self.path):
                if os.fstat(descriptor).st_size != self.size:
                    os.ftruncate(descriptor, self.size)
            yield descriptor
        finally:
            os.close(descriptor)

    def claim(self, etag: str) -> bool:
        """Tell whether an answer with this ETag continues the present bytes.

        The first ETag, which is empty if the server sends none, becomes the file's.
        """
        with self._lock:
            if self.etag is None and not self._discarded:
                self.etag = etag
            return self.etag == etag

    def write(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write bytes at an offset; they count as present after `keep`."""
        with cache_errors(self.path):
            os.lseek(descriptor, offset, os.SEEK_SET)
            write_all(descriptor, data)

    def keep(self, descriptor: int, start: int, end: int) -> None:
        """Sync a range to the disk, then count it as present."""
        if start >= end:
            return
        with cache_errors(self.path):
            os.fsync(descriptor)
            with self._lock:
                if self._discarded:
                    return
                self._append([start, end])
                self.present = merged([*self.present, (start, end)])

    def _append(self, entry: list[int]) -> None:
        head = {"commit": self._commit, "etag": self.etag, "size": self.size}
        lines = [entry] if self._valid_bytes else [head, entry]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        descriptor = os.open(self._journal, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(self._valid_bytes)
            file.seek(self._valid_bytes)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        self._valid_bytes += len(data)

    def discard(self) -> None:
        """Count nothing as present from now on: the bytes belong to another version."""
        with self._lock, cache_errors(self._journal):
            self._discarded = True
            self._journal.unlink(missing_ok=True)
            self._valid_bytes, self.etag, self.present = 0, None, []


def _parsed(line: bytes) -> Any:
    """Parse a line of a journal; None where it is torn."""
    with suppress(DataError):
        return parse_json(line, "the journal", OWN_FILE)
    return None


def _range(line: bytes, size: int) -> Range | None:
    value = _parsed(line)
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        return None
    start, end = value
    return (start, end) if 0 <= start < end <= size else None
