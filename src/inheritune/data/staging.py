"""A token directory appears complete or not at all, and is made by one process at a time."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inheritune.data.journal import Journal
from inheritune.errors import DataError, MachineError
from inheritune.system.files import sync_directory

__all__ = ["is_prepared", "publish", "staging_directory", "sweep"]


def is_prepared(out: Path) -> bool:
    """Whether ``out`` holds finished tokens.

    Raises:
        DataError: It holds something else, which must not be written over.
    """
    if (out / "manifest.json").exists():
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds files but no tokens.", "Move them, or choose another run.")
    return False


def sweep(out: Path) -> None:
    """Remove what a process left that was killed right after it had published ``out``."""
    room = out.with_name(out.name + ".partial")
    if room.is_dir():
        with suppress(Timeout, OSError), FileLock(room / "lock", timeout=0):
            shutil.rmtree(room, ignore_errors=True)


@contextmanager
def staging_directory(out: Path) -> Iterator[Journal]:
    """A journal, and beside ``out`` the directory it is of, that one process at a time may fill.

    Both are gone afterwards, except where work ended early and the journal tells of finished
    shards: the next process goes on from there.

    Raises:
        MachineError: The disk is full or read-only, or another process is at it.
    """
    room = out.with_name(out.name + ".partial")
    lock = FileLock(room / "lock")
    try:
        room.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        journal = Journal(room)
        try:
            if not journal.path.exists():
                journal.clear()  # left by a process that was killed early
            yield journal
        except BaseException:
            # Finished shards are worth hours, whatever went wrong: what does not fit is cleared.
            if not journal.path.exists():
                shutil.rmtree(room, ignore_errors=True)
            raise
        else:
            shutil.rmtree(room, ignore_errors=True)
        finally:
            lock.release()
    except Timeout as error:
        raise MachineError(
            f"another process is preparing {out}.", "Wait for it, then run this again."
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise MachineError(
            f"cannot write {out}: {(error.strerror or str(error)).lower()}.",
            "Free some space." if full else "Check the directory's permissions.",
        ) from error


def publish(staging: Path, manifest: dict[str, Any], out: Path) -> None:
    """Write the manifest, then move the finished directory to its place by one rename."""
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    with (staging / "manifest.json").open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    sync_directory(staging)
    staging.replace(out)
    sync_directory(out.parent)
