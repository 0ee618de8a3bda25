"""Whole files that share their bytes with another file."""

import errno
import os
from pathlib import Path

from inheritune.errors import MachineError
from inheritune.model_files.copy import create_file, open_source

try:
    import fcntl
except ImportError:  # Windows knows hard links only
    fcntl = None  # type: ignore[assignment]

__all__ = ["link_file"]

_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file


def link_file(source: Path, target: Path) -> None:
    """Make a file that takes no space of its own: a hard link, or a clone sharing its blocks.

    Args:
        source: Followed through symbolic links.
        target: Does not exist yet.

    Raises:
        MachineError: Neither can be made here.
    """
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
            raise
        if not _clone(real, target):
            raise MachineError(
                f"{real} cannot be linked from {target.parent}: {(error.strerror or '').lower()}.",
                "Write to the same file system, or use --mode copy.",
            ) from error


def _clone(source: Path, target: Path) -> bool:
    if fcntl is None:
        return False
    reading, writing = open_source(source), create_file(target)
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError:
        target.unlink()
        return False
    finally:
        os.close(reading)
        os.close(writing)
    return True
