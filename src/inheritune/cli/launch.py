"""Start the processes of `--processes N` on this machine, pass signals on, return their exit code.

The workers meet in a file of a private directory (`torch.distributed.FileStore`) and exchange
tensors over loopback: no port is opened to the network, and nothing that arrives is unpickled.
Several machines are started by torchrun instead.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from inheritune.errors import (
    NOT_MATCHED_EXIT_CODE,
    InherituneError,
    Interrupted,
    MachineError,
    escape,
)
from inheritune.system.processes import LAUNCHER, MEETING_FILE
from inheritune.system.signals import heard_signals, leave_closed_terminal

_FORWARDED = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # the last: a terminal was closed
    if hasattr(signal, name)
]
_HANGUP = getattr(signal, "SIGHUP", None)
_SAVE_S = 600.0  # how long workers may take for a last checkpoint after one of them failed
_POLL_S = 0.05


def is_first_process() -> bool:
    """Whether this process prints: the only one of a run, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def worker_command(arguments: Sequence[str]) -> list[str]:
    """The command line of a worker that is given these arguments of `inheritune`."""
    return [sys.executable, "-m", "inheritune", *arguments]


def launch(arguments: Sequence[str], processes: int, root: Path) -> int:
    """Run a command in several processes and wait for them.

    The first signal is passed on to the workers, which save and end; a second one kills them.

    Args:
        arguments: Arguments of `inheritune` for a command that works on the run in ``root``.
        processes: Number of workers, at least 2.

    Returns:
        The exit code that the run recorded, or that of process 0 where its work was done. Where
        the start was refused before anything was recorded: that of the worker that failed first.
        128 + N where signal N ended it.

    Raises:
        MachineError: The private directory beside the run cannot be made.
    """
    before = _ended(root)
    signals = _Signals()
    with _meeting_directory(root) as directory, signals.caught():
        environment = _environment(processes, directory / "store")
        # In sessions of their own: a terminal sends Ctrl-C to its whole process group, and each
        # worker must hear of it once, from here.
        for rank in range(processes):
            signals.workers.append(
                subprocess.Popen(
                    worker_command(arguments),
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    start_new_session=True,
                )
            )
        signals.all_started = True
        signals.pass_on()
        code = _wait(signals)
    if len(signals.received) > 1:
        return 128 + signals.received[-1]
    after = _ended(root)
    if after is not None and after != before:
        if after[0] not in (0, NOT_MATCHED_EXIT_CODE):
            return after[0]
        code = signals.workers[0].returncode  # the report is written after the end was recorded
    if code < 0:
        return Interrupted.exit_code if signals.received else 128 - code
    return code


class _Signals:
    """Signals that this process receives, and the workers they are passed on to."""

    def __init__(self) -> None:
        self.workers: list[subprocess.Popen[bytes]] = []
        self.received: list[int] = []
        self.all_started = False
        self._passed_on = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle signals while the block runs; no worker outlives it."""
        handlers = {
            number: signal.signal(number, self._handle) for number in heard_signals(_FORWARDED)
        }
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._kill()
            for worker in self.workers:
                worker.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        leave_closed_terminal()
        self.received.append(number)
        self.pass_on()

    def pass_on(self) -> None:
        """Send workers what was received; signals that come during their start are sent later."""
        if not self.all_started or self._passed_on == len(self.received):
            return
        self._passed_on = len(self.received)
        if self._passed_on > 1:
            self._kill()
            return
        number = self.received[0]
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM if number == _HANGUP else number)

    def _kill(self) -> None:
        """Kill every worker with all processes of its session; called by a handler, so no wait."""
        for worker in self.workers:
            if worker.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)


def _wait(signals: _Signals) -> int:
    """Wait for all workers; returns the exit code of the first that failed, 0 when none did.

    When one fails, the others are asked to save and end, and are killed after `_SAVE_S`.
    """
    workers = signals.workers
    code, deadline = 0, None
    while None in [worker.poll() for worker in workers]:
        code = code or _first_failure(workers)
        if code and deadline is None:
            deadline = time.monotonic() + _SAVE_S
            if not signals.received:  # else they are saving already: a second signal would kill
                for worker in workers:
                    worker.send_signal(signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            break  # `_Signals.caught` kills the rest
        time.sleep(_POLL_S)
    return code or _first_failure(workers)


def _first_failure(workers: Sequence["subprocess.Popen[bytes]"]) -> int:
    return next((worker.returncode for worker in workers if worker.returncode), 0)


def _environment(processes: int, store: Path) -> dict[str, str]:
    """Environment of the workers, without their ranks; what the user has set stands."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    own = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        MEETING_FILE: str(store),
        LAUNCHER: str(os.getpid()),
        # Both libraries open ports for tensors: on loopback, since all workers are on this machine.
        "GLOO_SOCKET_IFNAME": _loopback(),
        "NCCL_SOCKET_IFNAME": _loopback(),
    }
    defaults = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return defaults | os.environ | own


def _loopback() -> str:
    """Name of the loopback interface: lo on Linux, lo0 on macOS."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return names[0] if names else "lo"


@contextmanager
def _meeting_directory(root: Path) -> Iterator[Path]:
    """A directory beside the run that only this user may enter (mode 0700), removed at the end."""
    from inheritune.system.files import scratch_directory  # not needed for --help

    parent = root.parent
    is_new = not parent.exists()
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = stack.enter_context(scratch_directory(parent / "processes"))
        except OSError as error:
            raise MachineError(
                f"cannot make a directory in {escape(parent)}: {error.strerror}.",
                "Name another place with --runs.",
            ) from error
        yield path
    if is_new:  # a start that was refused leaves nothing behind
        with suppress(OSError):
            parent.rmdir()


def _ended(root: Path) -> tuple[int, str] | None:
    """Exit code and time of the last end that the run has recorded."""
    from inheritune.run_directory import Run  # pydantic: not needed for --help

    try:
        record = Run(root).read()
    except InherituneError:
        return None
    code = record.get("exit_code")
    return (code, str(record.get("finished_at"))) if type(code) is int else None
