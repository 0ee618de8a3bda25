"""Read a file that a user names, whatever it turns out to be."""

import os
import stat
from pathlib import Path

__all__ = ["read_regular_file"]


def read_regular_file(path: Path, limit: int) -> bytes:
    """All bytes of a regular file; never waits for a pipe, never reads more than it should.

    Args:
        path: Followed through symbolic links.
        limit: Largest size in bytes that is read.

    Raises:
        OSError: It is missing, unreadable, not a regular file or larger than ``limit``; the
            reason is in ``strerror``, lower case. A missing file is a FileNotFoundError.
    """
    # O_NONBLOCK: opening a FIFO that nobody writes to would otherwise wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_dir():  # asked first: Windows answers "permission denied" to opening one
            raise OSError(0, "it is a directory")
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise OSError(0, "its name holds a NUL") from error
    except OSError as error:
        raise OSError(error.errno, (error.strerror or str(error)).lower()) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file")
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise OSError(error.errno, (error.strerror or str(error)).lower()) from error
    if len(data) > limit:
        raise OSError(0, f"it is larger than {limit:,} bytes")
    return data
