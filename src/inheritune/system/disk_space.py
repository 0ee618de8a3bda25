"""Refuse to write what a disk has no room for, before the work that leads to it."""

import shutil
from pathlib import Path

from inheritune.errors import MachineError, escape


def refuse_full_disk(directory: Path, needed: int, content: str, hint: str) -> None:
    """Refuse to begin where fewer bytes are free than are needed.

    Args:
        directory: Where they are to be written; it need not exist yet.
        content: Names the bytes in the message, such as ``"the weights of NEW"``.

    Raises:
        MachineError: There is not enough room; both amounts are named.
    """
    parent = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise MachineError(
            f"{needed:,} bytes are needed for {content}; the disk of {escape(parent, 160)} has "
            f"{free:,} left.",
            hint,
        )
