"""A whole command as a child process: wall time, and the peak memory of each of its processes.

Keep the process that measures small: the kernel carries the peak of the process that starts a
program over into that program's `getrusage`, so what is below it cannot be read there.
"""

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.01
_PATIENCE_S = 1200.0
_MIB_OF_RUSAGE = 2**20 if os.uname().sysname == "Darwin" else 2**10
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONNOUSERSITE": "1"}


@dataclass(frozen=True)
class Run:
    """What a command took.

    Attributes:
        seconds: Wall time from its start to its end.
        own_mib: Peak resident memory of the process itself.
        child_mib: Of the largest process under it; None: it started none that lived for 10 ms.
        code: Exit status, negative for a signal.
        output: Last part of stdout and stderr.
    """

    seconds: float
    own_mib: float
    child_mib: float | None
    code: int
    output: str


def run(command: Sequence[str | Path], log: Path) -> Run:
    """Run a command to its end; kill it with everything under it after 20 minutes."""
    peaks: dict[int, float] = {}  # process -> MiB
    ended = threading.Event()
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | OFFLINE,
            start_new_session=True,
        )
        watch = threading.Thread(target=_watch, args=(process.pid, peaks, ended), daemon=True)
        watch.start()
        patience = threading.Timer(_PATIENCE_S, _kill_group, [process.pid])
        patience.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    patience.cancel()
    ended.set()
    watch.join()
    own, child = _own_and_child(process.pid, peaks, usage.ru_maxrss / _MIB_OF_RUSAGE)
    text = log.read_text("utf-8", "replace").strip()
    return Run(seconds, own, child, process.returncode, text[-4000:])


def _own_and_child(pid: int, peaks: dict[int, float], largest: float) -> tuple[float, float | None]:
    """The kernel's own figure, which misses nothing, where it can only mean one process."""
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB_OF_RUSAGE
    sampled = peaks.pop(pid, 0.0)
    if peaks:
        return sampled, largest if largest > max(sampled, mine) else max(peaks.values())
    return (largest if largest > mine or not sampled else sampled), None


def _watch(pid: int, peaks: dict[int, float], ended: threading.Event) -> None:
    """Every process of the session that the command was started in, by its high-water mark."""
    peaks[pid] = 0.0
    others: set[str] = set()
    while not ended.wait(_SAMPLE_S):
        with suppress(OSError):  # this is not Linux
            for name in (path.name for path in Path("/proc").iterdir()):
                if name.isdecimal() and name not in others:
                    if int(name) in peaks or _session(name) == pid:
                        peaks[int(name)] = _high_water(name) or peaks.get(int(name), 0.0)
                    else:
                        others.add(name)


def _session(process: str) -> int | None:
    with suppress(OSError):  # it ended meanwhile
        stat = Path("/proc", process, "stat").read_text("utf-8", "replace")
        return int(stat.rpartition(")")[2].split()[3])
    return None


def _high_water(process: str) -> float:
    with suppress(OSError):
        for line in Path("/proc", process, "status").read_text("utf-8", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
