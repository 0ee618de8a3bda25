"""Run a command in several processes with torchrun, and return the exit code that it recorded."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from inheritune.errors import InherituneError, Interrupted

__all__ = ["command_of", "is_first_process", "launch", "process_count"]

# torchrun passes SIGUSR1 on only if it is named; schedulers send it before they kill.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_FORWARDED = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # SIGHUP: the terminal was closed
    if hasattr(signal, name)
]
_HANGUP = getattr(signal, "SIGHUP", None)
_SAVE_S = 600  # time for a last checkpoint; torchrun's own default is 30 s


def is_first_process() -> bool:
    """Tell whether this process prints: it is the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Return the number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def command_of(arguments: Sequence[str], processes: int) -> list[str]:
    """Return the command line that starts several processes on this machine.

    Args:
        arguments: Command line of `inheritune`, without its name.
        processes: Number of processes.
    """
    return [
        *(sys.executable, "-m", "inheritune.cli.torchrun", str(os.getpid())),
        *("--nnodes", "1", "--nproc-per-node", str(processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
        *("--shutdown-timeout", str(_SAVE_S), "--signals-to-handle", _SIGNALS),
        *("-m", "inheritune", *arguments),
    ]


def launch(arguments: Sequence[str], processes: int, root: Path) -> int:
    """Run a command in several processes and wait for them.

    Args:
        arguments: Command line of `inheritune`, without its name; its run is in ``root``.
        processes: Number of processes.
        root: Directory of the run.

    Returns:
        The exit code that the run recorded. If it recorded none, as when the start was refused,
        the exit code of the workers.
    """
    before = _ended(root)
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    forwarder = _Forwarder()
    handlers = {number: signal.signal(number, forwarder.receive) for number in _FORWARDED}
    try:
        # A session of its own: a terminal sends Ctrl-C to the whole process group, and torchrun
        # would pass it on a second time.
        forwarder.process = subprocess.Popen(
            command_of(arguments, processes),
            env={"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ,
            start_new_session=True,
        )
        forwarder.pass_on()
        code = forwarder.process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if len(forwarder.received) > 1:
        return 128 + forwarder.received[-1]
    after = _ended(root)
    if after is not None and after != before:
        return int(after[0])
    # The run has recorded nothing.
    if code < 0:  # ended by a signal, passed on by this process or sent by somebody else
        return Interrupted.exit_code if forwarder.received else 128 - code
    return code


class _Forwarder:
    """Passes signals on to torchrun; a second signal kills it.

    Attributes:
        process: torchrun, once it is started.
        received: Signals received so far.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.received: list[int] = []
        self._passed_on = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, as `signal.signal` requires."""
        self.received.append(number)
        self.pass_on()

    def pass_on(self) -> None:
        """Pass a new signal on; before torchrun is started, it waits for the next call."""
        if self.process is None or self._passed_on == len(self.received):
            return
        self._passed_on = len(self.received)
        with suppress(ProcessLookupError):
            if len(self.received) == 1:
                # Workers save at SIGTERM, and torchrun passes on what it receives.
                number = self.received[0]
                self.process.send_signal(signal.SIGTERM if number == _HANGUP else number)
            else:  # workers have sessions of their own, and end with torchrun
                os.killpg(self.process.pid, signal.SIGKILL)


def _ended(root: Path) -> tuple[int, str] | None:
    """Read the exit code and the end time that a run has recorded, if any."""
    from inheritune.run_directory import Run

    try:
        record = Run(root).read()
    except InherituneError:
        return None
    code = record.get("exit_code")
    return None if code is None else (code, str(record.get("finished_at")))
