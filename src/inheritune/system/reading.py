"""Read a file that a user names, without trusting it to be a regular file of a sane size."""

import os
import stat
from pathlib import Path


def read_regular_file(path: Path, limit: int) -> bytes:
    """Read a regular file; this never waits for a pipe and never reads more than ``limit`` bytes.

    Args:
        path: A file; symbolic links are followed.
        limit: Largest accepted size, in bytes.

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
