"""Let one process at a time work on something, and name it to everybody else."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from inheritune.errors import DataError, MachineError, escape
from inheritune.system.files import make_directory, write_errors, write_json
from inheritune.system.progress import Listener, Progress
from inheritune.system.strict_json import read_json

_RETRY_S = 0.2  # between two attempts to get a lock


@contextmanager
def locked(
    path: Path,
    busy: str,
    hint: str = "Wait for it to end, or stop it.",
    wait: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold a lock while the block runs; the system frees it when the process ends, however.

    Args:
        path: The lock's file; its directory is made where missing. While the lock is held,
            ``<path>.json`` names the holder.
        busy: Says what another holder does, such as ``"another process works on runs/x"``.
        hint: Says what to do about it.
        wait: Called several times a second while another process holds the lock; true: go on
            waiting. It may raise.

    Raises:
        MachineError: Another process holds it; its number and machine are named. Or the system
            refuses.
    """
    holder = path.with_name(f"{path.name}.json")
    lock = FileLock(path)
    with write_errors(path):
        make_directory(path.parent)
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout as error:
                if not wait():
                    raise MachineError(f"{busy}: {_name_of(holder)}.", hint) from error
            time.sleep(_RETRY_S)
    try:
        write_json(holder, {"pid": os.getpid(), "machine": platform.node()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def patiently(path: Path, on_progress: Listener, check: Callable[[], None]) -> Callable[[], bool]:
    """Return a ``wait`` of `locked` that says once that it waits.

    Args:
        path: What another process works on.
        check: Called several times a second; raises where the wait is to end.
    """
    message = f"another process works on {path}: waiting for it"
    news = iter([Progress("waiting", message=message)])

    def wait() -> bool:
        check()
        for event in news:
            on_progress(event)
        return True

    return wait


def holder_has_ended(path: Path) -> bool:
    """Whether a lock names a process of this machine that is no more. Touches no lock."""
    try:
        record = read_json(path.with_name(f"{path.name}.json"))
        if os.name != "posix" or record["machine"] != platform.node():
            return False
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return True
    except (DataError, OSError, KeyError, TypeError, ValueError, OverflowError):
        pass
    return False


def _name_of(holder: Path) -> str:
    try:
        record = read_json(holder)
        return f"process {int(record['pid'])} on {escape(record['machine'], 60)}"
    except (DataError, KeyError, TypeError, ValueError):
        return "process unknown"  # it has the lock and is about to write who it is
