"""One process at a time writes to what was downloaded of a model."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from inheritune.errors import Interrupted, MachineError
from inheritune.model_files.download.partial_file import writing
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.reading import escape

__all__ = ["one_writer", "stopped"]

_LONGEST_WAIT_S = 600


@contextmanager
def one_writer(
    root: Path,
    model: str,
    listen: Listener = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Be the only process that writes below a directory; wait for another one to end.

    Args:
        root: Made if it is not there.
        model: Hub id, for messages.
        listen: Told when there is another one.
        should_stop: Asked several times a second while waiting.

    Raises:
        MachineError: The system refuses, or the other one does not end within ten minutes.
        Interrupted: ``should_stop`` said so.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    give_up_at = time.monotonic() + _LONGEST_WAIT_S
    if not _acquired(lock, root):
        listen(Progress(f"download, {model}", message="another process downloads it: waiting"))
        while not _acquired(lock, root):
            if should_stop():
                raise stopped(model)
            if time.monotonic() > give_up_at:
                raise MachineError(
                    f"another process still downloads {model} to {escape(root, 160)}.",
                    "Wait for it to end, or stop it.",
                )
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock, root: Path) -> bool:
    with writing(root):
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            return False
    return True


def stopped(model: str) -> Interrupted:
    """What to raise when a download is to stop.

    Args:
        model: Hub id.
    """
    return Interrupted(
        f"stopped while {model} was downloaded; what has arrived is kept.",
        "Run the same command to continue.",
    )
