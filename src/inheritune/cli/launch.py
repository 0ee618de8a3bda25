"""`--processes N`: torchrun with the right options, and the exit code that was recorded."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from inheritune.errors import InherituneError, Interrupted
from inheritune.run_directory import Run

__all__ = ["command_of", "is_first_process", "launch", "process_count"]

# torchrun does not pass SIGUSR1 on unless it is named; schedulers send it before they kill.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_FORWARDED = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # the last one: a terminal was closed
    if hasattr(signal, name)
]
_HANGUP = getattr(signal, "SIGHUP", None)
_SAVE_S = 600  # for a last checkpoint; torchrun kills after 30 s unless told


def is_first_process() -> bool:
    """Whether this is the process that prints: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes torchrun has started of this one; 1 where it has not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def command_of(arguments: Sequence[str], processes: int) -> list[str]:
    """The command line that starts several processes of one on this machine, from this process.

    Args:
        arguments: Of `inheritune`.
        processes: How many.
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
        arguments: Of `inheritune`; they lead to a run in ``root``.
        processes: How many.
        root: The run's directory.

    Returns:
        The exit code that the run recorded; of a start that was refused, that of the workers.
    """
    before = _ended(root)
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    started: subprocess.Popen[bytes] | None = None
    asked: list[int] = []
    passed_on: list[int] = []

    def pass_on(number: int | None = None, frame: FrameType | None = None) -> None:
        if number is not None:
            asked.append(number)
        if started is None or len(passed_on) == len(asked):
            return  # a signal that came while it was being started is passed on afterwards
        passed_on[:] = asked
        with suppress(ProcessLookupError):
            if len(asked) == 1:
                # Workers save at SIGTERM, and torchrun hands on what it was sent.
                started.send_signal(signal.SIGTERM if asked[0] == _HANGUP else asked[0])
            else:  # its workers, which have sessions of their own, end with it
                os.killpg(started.pid, signal.SIGKILL)

    handlers = {number: signal.signal(number, pass_on) for number in _FORWARDED}
    try:
        # In a session of its own: a terminal sends Ctrl-C to a whole group, and torchrun once more.
        started = subprocess.Popen(
            command_of(arguments, processes),
            env={"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ,
            start_new_session=True,
        )
        pass_on()
        code = started.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if len(asked) > 1:
        return 128 + asked[-1]
    after = _ended(root)
    if after is not None and after != before:
        return int(after[0])
    # It did not come so far as to record anything.
    if code < 0:  # a signal, which this process passed on or somebody else sent
        return Interrupted.exit_code if asked else 128 - code
    return code


def _ended(root: Path) -> tuple[int, str] | None:
    try:
        record = Run(root).read()
    except InherituneError:
        return None
    code = record.get("exit_code")
    return None if code is None else (code, str(record.get("finished_at")))
