"""Stopping when asked: the first signal sets a flag, a second one ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from inheritune.errors import Interrupted

__all__ = ["StopFlag", "catch_signals"]

_ASKS_TO_STOP = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class StopFlag:
    """Whether somebody asked to stop; every long loop looks at it between two pieces of work."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal_number is not None

    def check(self, saved: str) -> None:
        """Raise where stopping is safe.

        Args:
            saved: What is on disk, for the message.

        Raises:
            Interrupted: Somebody asked to stop.
        """
        if self.signal_number is not None:
            name = signal.Signals(self.signal_number).name
            raise Interrupted(f"stopped by {name}; {saved}.", "Run the same command to continue.")


@contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Collect SIGINT, SIGTERM and SIGUSR1 in a flag while the block runs.

    Handlers are installed even where the signal was ignored: a job that a script starts in the
    background inherits an ignored SIGINT.
    """
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.signal_number is not None:
            os._exit(128 + number)
        flag.signal_number = number

    if threading.current_thread() is not threading.main_thread():
        yield flag  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, handle) for number in _ASKS_TO_STOP}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
