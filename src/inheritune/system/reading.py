"""Read files that a stranger may have made, and look over the directories that hold them."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from inheritune.errors import DataError, escape, reason_of

_LONGEST_LINE = 2**20  # bytes; of a longer line the pieces are read
_MOST_LINES = 4_000_000_000  # bytes of a file of lines


def read_regular_file(path: Path, limit: int) -> bytes:
    """Read a regular file; this never waits for a pipe and never reads more than ``limit`` bytes.

    Args:
        path: A file; symbolic links are followed.
        limit: Largest accepted size, in bytes.

    Raises:
        OSError: It is missing, unreadable, not a regular file or larger than ``limit``; the
            reason is in ``strerror``, lower case. A missing file is a FileNotFoundError.
    """
    with open_regular_file(path, limit) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise OSError(error.errno, reason_of(error)) from error
    if len(data) > limit:  # it grew
        raise OSError(0, f"it is larger than {limit:,} bytes")
    return data


def read_lines(path: Path) -> Iterator[bytes]:
    """Read a regular file line by line, a line of more than a megabyte in pieces.

    Raises:
        OSError: As `read_regular_file`; the limit is 4 GB.
    """
    with open_regular_file(path, _MOST_LINES) as file:
        while line := file.readline(_LONGEST_LINE):
            yield line


def open_regular_file(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading; raises as `read_regular_file`, and at once."""
    # O_NONBLOCK: opening a FIFO that nobody writes to would otherwise wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_dir():  # asked first: Windows answers "permission denied" to opening one
            raise OSError(0, "it is a directory")
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise OSError(0, "its name holds a NUL") from error
    except OSError as error:
        raise OSError(error.errno, reason_of(error)) from error
    status = os.fstat(descriptor)
    problem = None if stat.S_ISREG(status.st_mode) else "it is not a regular file"
    if problem is None and limit is not None and status.st_size > limit:
        problem = f"it is larger than {limit:,} bytes"
    if problem is not None:
        os.close(descriptor)
        raise OSError(0, problem)
    return os.fdopen(descriptor, "rb")


def directories_below(
    root: Path, is_passed_over: Callable[[Path], bool] = lambda directory: False
) -> Iterator[Path]:
    """List a directory and those below it, and refuse what leads out of it.

    Directories that another process removes meanwhile are passed over.

    Args:
        is_passed_over: True for a directory that is not entered.

    Raises:
        DataError: Something below is a link that leads out of ``root``, a pipe, a socket or a
            device: reading or writing it would read, write or wait elsewhere.
    """
    real_root = Path(os.path.realpath(root))
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            entries = list(os.scandir(directory))
        except OSError:
            continue
        yield directory
        for entry in entries:
            if entry.is_symlink():
                _refuse_link_out(Path(entry.path), real_root)
            elif entry.is_dir(follow_symlinks=False):
                below = Path(entry.path)
                pending += [] if is_passed_over(below) else [below]
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                raise DataError(
                    f"{escape(entry.path, 300)} is neither a file nor a directory.",
                    "Remove it, if you trust the rest of the run.",
                )


def _refuse_link_out(path: Path, real_root: Path) -> None:
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(real_root):
        raise DataError(
            f"{escape(path, 300)} is a link that leads out of the run, to {escape(target, 300)}.",
            "Put the files themselves there, if you trust it. To keep a run on another disk, move "
            "all of it there and link to its directory.",
        )
