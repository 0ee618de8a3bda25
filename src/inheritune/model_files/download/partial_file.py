"""A file of which only some ranges are present, and the journal that says which.

The file has its full size from the start, and the bytes that are missing take no space where the
file system knows sparse files. A range is journaled once its bytes are on the disk, so whatever a
killed process leaves behind can be trusted.

Arithmetic on ranges of bytes: which parts of a file are wanted, present, or still missing.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from inheritune.errors import MachineError, escape
from inheritune.system.files import sync_directory

__all__ = [
    "PartialFile",
    "Range",
    "bridged",
    "byte_count",
    "merged",
    "pieces",
    "subtracted",
    "writing",
]

Range = tuple[int, int]
"""First byte, and the byte after the last one."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes as ascending ranges that neither overlap nor touch; empty ones are dropped."""
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
    """The bytes of some ranges that are in none of others, merged."""
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
    """Join ranges over small gaps: fewer requests for a few bytes more.

    Args:
        ranges: Merged.
        budget: Most bytes that all bridged gaps may have together; the smallest come first.
        widest: Most bytes of one gap.

    Returns:
        Merged ranges that hold every byte of the given ones.
    """
    gaps = [(a[1], b[0]) for a, b in pairwise(ranges)]
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
    """Bytes of ranges that do not overlap."""
    return sum(end - start for start, end in ranges)


_BINARY = getattr(os, "O_BINARY", 0)
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what the system refuses while the cache is written, and the way out.

    Args:
        path: What is written, for messages.

    Raises:
        MachineError: No space, no permission, a read-only or unsuitable file system.
    """
    try:
        yield
    except OSError as error:
        way_out = "Set HF_HOME to a directory that can be written to."
        if error.errno in _FULL:
            way_out = "Free some space, or set HF_HOME to another disk; what has arrived is kept."
        elif error.errno == errno.EFBIG:
            way_out = (
                "Set HF_HOME to a disk that takes files of the model's size, sparse ones best."
            )
        reason = (error.strerror or str(error)).lower()
        raise MachineError(f"cannot write {escape(path, 300)}: {reason}.", way_out) from error


class PartialFile:
    """One file of a mirror. Several threads of one process may write different ranges at once.

    Args:
        name: Of the file on the server: a relative path with ``/``.
        path: The file.
        journal: Its journal; neither must exist.
        size: Bytes of the whole file.
        commit: What the journal is bound to, beside size and ETag.

    Attributes:
        name: Of the file on the server.
        path: The file.
        size: Bytes of the whole file.
        etag: What the server calls its content; None before the first answer.
        present: Ranges that are there, merged.
        ranges_refused: The server answers with the whole file whatever is asked for.
        whole: Held by the one thread that then fetches it.
    """

    def __init__(self, name: str, path: Path, journal: Path, size: int, commit: str) -> None:
        self.name, self.path, self.size = name, path, size
        self.etag: str | None = None
        self.present: list[Range] = []
        self.ranges_refused = False
        self.whole = threading.Lock()
        self._journal, self._commit = journal, commit
        self._lock = threading.Lock()
        self._valid_bytes = 0  # of the journal; a torn tail is cut off before anything is added
        self._discarded = False
        self._read_journal()

    def _read_journal(self) -> None:
        try:
            if self.path.lstat().st_size != self.size or not self.path.is_file():
                return
            lines = self._journal.read_bytes().split(b"\n")[:-1]  # the last one has no end: torn
        except OSError:
            return
        try:
            begin = json.loads(lines[0])
            if [begin["commit"], begin["size"]] != [self._commit, self.size]:
                return
            self.etag = str(begin["etag"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return
        self._valid_bytes = len(lines[0]) + 1
        found = []
        for line in lines[1:]:
            if (entry := _range(line, self.size)) is None:
                break
            found.append(entry)
            self._valid_bytes += len(line) + 1
        self.present = merged(found)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor for one thread to write with, of the file at its full size.

        Raises:
            MachineError: The system refuses.
        """
        with self._lock, writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            if not self._valid_bytes and self._journal.exists():
                # Of another version, or of a file that is gone. It must not outlive this line: the
                # file that is made now is all zeros, and would soon have the size it speaks of.
                self._journal.unlink()
                sync_directory(self._journal.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        try:
            with writing(self.path):
                if os.fstat(descriptor).st_size != self.size:
                    os.ftruncate(descriptor, self.size)
            yield descriptor
        finally:
            os.close(descriptor)

    def claim(self, etag: str) -> bool:
        """Whether an answer with this ETag belongs to what is there; the first one decides.

        Args:
            etag: Without quotes; empty when the server names none.
        """
        with self._lock:
            if self.etag is None and not self._discarded:
                self.etag = etag
            return self.etag == etag

    def write(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write bytes at their place; they count once `keep` was called.

        Raises:
            MachineError: The system refuses.
        """
        rest = memoryview(data)
        with writing(self.path):
            os.lseek(descriptor, offset, os.SEEK_SET)
            while rest:
                rest = rest[os.write(descriptor, rest) :]

    def keep(self, descriptor: int, start: int, end: int) -> None:
        """Count a range as present, once it is on the disk.

        Raises:
            MachineError: The system refuses.
        """
        if start >= end:
            return
        with writing(self.path):
            os.fsync(descriptor)
            with self._lock:
                if self._discarded:
                    return
                self._append([start, end])
                self.present = merged([*self.present, (start, end)])

    def _append(self, entry: list[int]) -> None:
        head = {"commit": self._commit, "etag": self.etag, "size": self.size}
        new = [entry] if self._valid_bytes else [head, entry]
        data = "".join(json.dumps(value) + "\n" for value in new).encode()
        descriptor = os.open(self._journal, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(self._valid_bytes)
            file.seek(self._valid_bytes)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        self._valid_bytes += len(data)

    def discard(self) -> None:
        """Count nothing as present, now and later: what is there belongs to another version."""
        with self._lock, writing(self._journal):
            self._discarded = True
            self._journal.unlink(missing_ok=True)
            self._valid_bytes, self.etag, self.present = 0, None, []


def _range(line: bytes, size: int) -> Range | None:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        return None
    start, end = value
    return (start, end) if 0 <= start < end <= size else None
