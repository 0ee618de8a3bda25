"""Run trainings as child processes that take turns, and collect their times.

Keep the process that measures small: see cutting/measure.py.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.shapes import Shape

_HERE = Path(__file__).resolve().parents[1]
_PATIENCE_S = 900.0  # for one answer; compiling a large model is part of the first
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONNOUSERSITE": "1"}


@dataclass
class Program:
    """One way of training: what runs, and what came out.

    Attributes:
        name: For the table.
        module: Module of this package that runs it.
        options: For the program.
        python: Of the environment that it runs in.
        why_not: Why it does not run; empty: it does.
        seconds: Of a step, by round.
        base: Of our step in the same rounds.
        facts: Values that it reported at its end.
    """

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    python: Path = Path(sys.executable)
    why_not: str = ""
    seconds: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many of our steps fit into one of its, median of the rounds."""
        return statistics.median(s / b for s, b in zip(self.seconds, self.base, strict=True))


class Died(Exception):
    """A child ended before it was asked to; the last line that it printed."""


class Child:
    """A training in a process of its own."""

    def __init__(
        self, program: Program, shape: Shape, folder: Path, env: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True)
        self._log = folder / "log"
        job = {"shape": shape.as_json(), "folder": str(folder), **program.options}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program.python, "-m", f"training.{program.module}", json.dumps(job)],
                cwd=_HERE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | _OFFLINE | (env or {}),
                start_new_session=True,
            )

    def answer(self, patience_s: float = _PATIENCE_S) -> dict[str, Any]:
        """The next thing it says; it is killed when that takes too long."""
        patience = threading.Timer(patience_s, self.kill)
        patience.start()
        try:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        finally:
            patience.cancel()
        if not line:
            raise Died(self._last_words())
        return dict(json.loads(line))

    def ask(self, command: str, patience_s: float = _PATIENCE_S) -> dict[str, Any]:
        """Send a line; the answer to it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._last_words()) from None
        return self.answer(patience_s)

    def kill(self) -> None:
        """End it with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.communicate()

    def peak_mib(self) -> float:
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
            return int(status.split("VmHWM:")[1].split()[0]) / 1024
        return 0.0

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        return f"ended with {code}: {(lines or ['without a word'])[-1].strip()[:160]}"


def take_turns(
    shape: Shape,
    programs: Sequence[Program],
    rounds: int,
    steps: int,
    scratch: Path,
    env: dict[str, str],
) -> None:
    """Every program that can run, `steps` steps at a time, whole rounds; the first program is ours.

    All processes stay alive, so that each compiles once. Where memory does not hold them all,
    ours takes its turns again with the rest.
    """
    ours, *waiting = [program for program in programs if not program.why_not]
    group: list[tuple[Program, Child]] = []
    [(_, our_child)] = _start([ours], shape, scratch, env)
    try:
        while not ours.why_not and (waiting or not ours.seconds):
            while waiting and (not group or _fits([our_child, *(c for _, c in group)])):
                # Two at a time: compiling keeps one core busy.
                group += _start(waiting[:2], shape, scratch, env)
                waiting = waiting[2:]
            with _noted(ours):
                _rounds(ours, our_child, group, rounds, steps)
            while group:
                group.pop()[1].close()
        with _noted(ours):
            ours.facts = our_child.ask("end")
    finally:
        for child in (our_child, *(c for _, c in group)):
            child.close()


def _rounds(
    ours: Program, our_child: Child, group: list[tuple[Program, Child]], rounds: int, steps: int
) -> None:
    for number in range(rounds):
        base = our_child.ask(str(steps))["seconds"]
        ours.seconds.append(base)
        ours.base.append(base)
        line = [f"{ours.name} {base * 1000:.0f}"]
        for program, child in group:
            if program.why_not:
                continue
            with _noted(program):
                program.seconds.append(child.ask(str(steps))["seconds"])
                program.base.append(base)
                line.append(f"{program.name} {program.seconds[-1] * 1000:.0f}")
        print(f"  round {number + 1}, ms: {', '.join(line)}", flush=True)
    for program, child in group:
        if not program.why_not:
            with _noted(program):
                program.facts = child.ask("end")


def _start(
    programs: Sequence[Program], shape: Shape, scratch: Path, env: dict[str, str]
) -> list[tuple[Program, Child]]:
    """Children that are warm, or have died and left the reason in their program."""
    started = []
    for program in programs:
        print(f"  {program.name}: starting", flush=True)
        folder = scratch / program.name.replace(" ", "-").replace("'", "")
        started.append((program, Child(program, shape, folder, env)))
    for program, child in started:
        with _noted(program):
            child.answer()
    return started


@contextmanager
def _noted(program: Program) -> Iterator[None]:
    try:
        yield
    except Died as error:
        program.why_not = str(error)


def _fits(children: list[Child]) -> bool:
    """Whether memory holds two more that are half as large again as the largest."""
    with suppress(OSError, IndexError):
        text = Path("/proc/meminfo").read_text("utf-8")
        available = int(text.split("MemAvailable:")[1].split()[0]) / 1024
        return available > 3 * max(child.peak_mib() for child in children)
    return True
