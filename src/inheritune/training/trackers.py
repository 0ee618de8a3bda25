"""Rows of metrics.jsonl, sent to trackers on the side: a training never waits for one, nor stops.

Each tracker has a thread of its own, which takes rows from a bounded queue. What the tracker does
there (raise, block, not be installed) is one sentence, said once in a training.
"""

import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inheritune.errors import DataError, escape
from inheritune.system.files import write_json
from inheritune.system.strict_json import read_json
from inheritune.training.tracker_adapters import Row, Tracked, Tracker

__all__ = ["Trackers"]

_SENT = ("loss", "ce", "kl", "val_loss", "grad_norm", "learning_rate", "tokens_per_s", "mfu")
_MOST_WAITING = 10_000  # rows of a tracker that is down or slow; more are left out
_AT_ONCE = 100  # rows handed over in one call
_DRAIN_S = 5.0  # longest wait for all trackers together when a training ends, or is stopped
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0  # between two tries of what raised
# Credentials in an address, its query, and whatever is as long as a key is.
_SECRET = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=\?)\S+|hf_\w+|[\w-]{32,}")


class Trackers:
    """The trackers of one training, from its first row to the end of the block.

    Args:
        makers: What makes each, by its name in the recipe; empty where nothing is sent.
        name: Of the training, as the trackers show it.
        folder: Its directory; `trackers.json` in it keeps what continues a tracker's run.
        say: Is told, in the thread of the training, one sentence of every tracker that fails.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Tracker]],
        name: str,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._training = Tracked(name, folder)
        self._path, self._say = folder / "trackers.json", say
        self._ids = _read_ids(self._path) if makers else {}
        self._lock = threading.Lock()
        self._feeds = [_Feed(maker, partial(self._remember, n)) for n, maker in makers.items()]
        self._names = list(makers)
        self._started = False

    def __enter__(self) -> Self:
        """Nothing is started before the first row: it says where the training begins."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the rows that are under way, a few seconds at most."""
        for feed in self._feeds:
            feed.end()
        until = time.monotonic() + _DRAIN_S
        for feed in self._feeds:
            feed.wait(until)
        self._say_troubles()

    def send(self, row: Mapping[str, Any]) -> None:
        """Hand a row to every tracker; returns at once.

        Args:
            row: As it stands in metrics.jsonl.
        """
        again = row.get("event") == "continued"  # what is older than this row stays as it was sent
        if not self._started:
            self._started = True
            first_step = row["step"] + again
            for name, feed in zip(self._names, self._feeds, strict=True):
                known = self._ids.get(name)
                feed.start(replace(self._training, run_id=known, first_step=first_step))
        values = {name: float(row[name]) for name in _SENT if row.get(name) is not None}
        if "val_loss" not in row:  # a validation stands beside the row of its step
            values["tokens"] = float(row["tokens"])
        if not again:
            for feed in self._feeds:
                feed.put(Row(row["step"], row["tokens"], time.time(), values))
        self._say_troubles()

    def _say_troubles(self) -> None:
        for name, feed in zip(self._names, self._feeds, strict=True):
            if feed.trouble and not feed.said:
                feed.said = True
                unharmed = "the training is unharmed, and metrics.jsonl has every row"
                self._say(f"tracker {name}: {feed.trouble}; {unharmed}")

    def _remember(self, name: str, run_id: str) -> None:
        with self._lock:
            self._ids[name] = run_id
            write_json(self._path, self._ids)


class _Feed:
    """One tracker, its queue and its thread.

    Attributes:
        trouble: The first thing that went wrong; empty so far.
        said: Whether somebody was told.
    """

    def __init__(self, make: Callable[[], Tracker], remember: Callable[[str], None]) -> None:
        self.trouble = ""
        self.said = False
        self._make, self._remember = make, remember
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._given_up = False
        self._thread: threading.Thread | None = None

    # -- in the thread of the training

    def start(self, training: Tracked) -> None:
        # A daemon: the process ends when it wants to, whatever the tracker is waiting for.
        self._thread = threading.Thread(target=self._work, args=(training,), daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        with self._changed:
            if self._given_up:
                return
            if len(self._rows) < _MOST_WAITING:
                self._rows.append(row)
                self._changed.notify()
                return
        self._complain(f"it does not keep up, and rows are left out there after {row.step - 1:,}")

    def end(self) -> None:
        """No more rows will come."""
        with self._changed:
            self._over.set()
            self._changed.notify()

    def wait(self, until: float) -> None:
        """Wait until the rows are sent, or this moment of the monotonic clock has come."""
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
            if self._rows and not self._given_up:
                self._complain(f"{len(self._rows):,} rows were not taken within {_DRAIN_S:g} s")

    # -- in the tracker's own thread

    def _work(self, training: Tracked) -> None:
        tracker = self._make()
        if self._insist(partial(self._open, tracker, training)):
            while count := self._wait_for_rows():
                rows = list(itertools.islice(self._rows, count))
                if not self._insist(partial(tracker.log, rows)):
                    break
                with self._changed:
                    for _ in rows:
                        self._rows.popleft()
            else:
                self._insist(tracker.finish)
        self._given_up = True

    def _open(self, tracker: Tracker, training: Tracked) -> None:
        run_id = tracker.start(training)
        if run_id is not None and run_id != training.run_id:
            # Not tried again: that would open a second run.
            try:
                self._remember(run_id)
            except Exception as error:
                self._complain(_sentence(error))

    def _wait_for_rows(self) -> int:
        """How many to send now; 0 when all are sent and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._over.is_set())
            return min(len(self._rows), _AT_ONCE)

    def _insist(self, call: Callable[[], object]) -> bool:
        """Call until it succeeds, less and less often; once more when the training is over.

        Returns:
            Whether it succeeded.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            last = self._over.is_set()
            try:
                call()
                return True
            except ImportError as error:
                self._complain(f'{_sentence(error)} (pip install "inheritune[trackers]")')
                return False
            except Exception as error:  # a tracker may raise whatever it likes
                self._complain(_sentence(error))
            if last:
                return False
            self._over.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _complain(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble


def _read_ids(path: Path) -> dict[str, str]:
    """Runs of the start before; what cannot be read begins new ones."""
    try:
        found = read_json(path)
    except DataError:
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {name: run_id for name, run_id in known if isinstance(run_id, str)}


def _sentence(error: Exception) -> str:
    """An error of a tracker, without what only the tracker should know."""
    first = (str(error).strip().splitlines() or [""])[0]
    said = escape(_SECRET.sub("***", first), 160).rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
