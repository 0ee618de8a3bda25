"""Stop on signals: the first one sets a flag, a second one ends the process at once."""

import ctypes
import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from inheritune.errors import Interrupted

_STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
]

_ECHO_S = 2.0
_PR_SET_PDEATHSIG = 1  # prctl.h


def follow_parent(number: int) -> None:
    """Have the system send this process a signal when its parent ends, however it ends.

    Only Linux can do this; elsewhere nothing happens. If the parent has already ended, no signal is
    sent.

    Args:
        number: Number of the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def heard_signals(numbers: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Those to handle: all but a hangup that whoever started this process has it ignore."""
    hangup = getattr(signal, "SIGHUP", None)
    return [n for n in numbers if n != hangup or signal.getsignal(n) != signal.SIG_IGN]


def leave_closed_terminal() -> None:
    """Send what is printed to a terminal that is gone nowhere: saving must not fail by printing."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


class StopFlag:
    """Remembers a request to stop; every long loop asks it between two pieces of work."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.signal_number is not None

    def heed(self, requested: bool) -> None:
        """Request a stop here, too, where another process of the run was asked to."""
        if requested and self.signal_number is None:
            self.signal_number = signal.SIGTERM

    def check(self, saved: str) -> None:
        """Raise if a stop was requested; called where stopping is safe.

        Args:
            saved: Says what is on disk, for the message.

        Raises:
            Interrupted: A stop was requested.
        """
        if self.signal_number is not None:
            name = signal.Signals(self.signal_number).name
            raise Interrupted(f"stopped by {name}; {saved}.", "Run the same command to continue.")


_ends_process = False


def end_process_at_second_signal() -> None:
    """Let a second signal end this process at once, as people expect of a command.

    A library must not end its caller's process: without this call, KeyboardInterrupt is raised.
    """
    global _ends_process
    _ends_process = True


@contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Collect SIGINT, SIGTERM, SIGUSR1 and SIGHUP in a flag while the block runs.

    A second signal raises KeyboardInterrupt, or ends the process of a command. Outside the main
    thread no signal arrives, so nothing is installed. The handlers before are put back at the end.

    Handlers are installed even where the signal was ignored: a job that a script starts in the
    background inherits an ignored SIGINT. An ignored SIGHUP stays so: that is what nohup is for.
    """
    flag = StopFlag()

    # torchrun passes on what the terminal has sent to every process already: no second request.
    echo_s = _ECHO_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
    requested_at = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        leave_closed_terminal()
        if flag.signal_number is None:
            flag.signal_number, requested_at = number, time.monotonic()
        elif time.monotonic() - requested_at >= echo_s:
            if _ends_process:
                os._exit(128 + number)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield flag  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, handle) for number in heard_signals(_STOP_SIGNALS)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not installed from Python, and cannot be put back
                signal.signal(number, handler)
