"""Report the steps of a training of any make to the driver, and wait for its turn.

Runs in whatever environment the training runs in, hence nothing but the standard library. What the
training prints goes to stderr; stdout is for the answers.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

WARM_UP = 3  # steps before the first turn: compiling, the optimizer's state


class Turns:
    """Called after every step by the process that trains.

    With one thread (`OMP_NUM_THREADS=1`) and no device to wait for, seconds are those of the
    processor, which other programs move less.

    Args:
        sync: Waits for the device; None: steps end when they return.
        least_s: A turn goes on for that many seconds at least.
        facts: Asked at the end for more to say.
    """

    def __init__(
        self,
        sync: Callable[[], None] | None = None,
        least_s: float = 0.0,
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        sys.stdout.flush()
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._sync, self._least_s, self._facts = sync, least_s, facts
        one_thread = os.environ.get("OMP_NUM_THREADS") == "1" and sync is None
        self._clock = time.process_time if one_thread else time.perf_counter
        self._ends: list[float] = []
        self._wanted, self._warm = WARM_UP, False
        self._notes: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Something to say at the end."""
        self._notes |= facts

    def step_done(self) -> None:
        """A step ended; the process stays here between its turns."""
        now = self._clock()
        lasted = now - self._ends[0] if self._ends else 0.0
        last = len(self._ends) + 1 >= self._wanted and not (self._warm and lasted < self._least_s)
        if self._sync and (last or not self._ends):
            self._sync()
            now = self._clock()
        self._ends.append(now)
        if last:
            self._answer({"seconds": self._seconds()} if self._warm else {})
            self._warm = True
            self._wait()

    def end(self, **facts: Any) -> NoReturn:
        """Say what is left to say and end, whatever the training would still do."""
        self._answer({"peak_mib": peak_mib()} | self._notes | self._facts() | facts)
        os._exit(0)

    def _wait(self) -> None:
        command = sys.stdin.readline().strip()
        if not command.isdecimal():
            self.end()
        # One more: the first one after a pause finds cold caches, and ends where the turn begins.
        self._wanted, self._ends = int(command) + 1, []

    def _seconds(self) -> float:
        """Of a step. Where steps are only put into a queue, the mean: ends mean nothing then."""
        if self._sync:
            return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return statistics.median(end - begin for begin, end in pairwise(self._ends))

    def _answer(self, facts: dict[str, Any]) -> None:
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()


def peak_mib() -> float | None:
    """Largest resident memory of this process alone; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    marks = [line for line in lines if line.startswith("VmHWM:")]
    return int(marks[0].split()[1]) / 1024 if marks else None
