"""Send the rows of metrics.jsonl to trackers; a training never waits for one or fails by it.

Each tracker has a thread of its own, which takes rows from a bounded queue. If the tracker raises,
blocks or is not installed, the user reads one sentence, once in a training.
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
from typing import Any, Self

from inheritune.errors import DataError, escape
from inheritune.system.files import write_json
from inheritune.system.secrets import MASK, mask
from inheritune.system.strict_json import read_json
from inheritune.training.tracker_adapters import Row, TrackedTraining, Tracker

_COLUMNS = ("loss", "ce", "kl", "val_loss", "grad_norm", "learning_rate", "tokens_per_s", "mfu")
_MAX_WAITING = 10_000  # rows of a tracker that is down or slow; more are left out
_BATCH = 100  # rows of one call
_DRAIN_S = 5.0  # longest wait for all trackers together when a training ends, or is stopped
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0  # between two tries of what raised
# A tracker's words, besides what `mask` knows: queries, and whatever is as long as a key.
_SECRET = re.compile(r"(?<=\?)\S+|[\w-]{32,}")


class Trackers:
    """The trackers of one training, from its first row to the end of the block.

    Args:
        makers: Functions that make the trackers, by their names in the recipe.
        name: Name of the training, for people.
        folder: Directory of the training; `trackers.json` in it keeps the ids that reopen runs.
        on_trouble: Called in the training's thread with one sentence for each tracker that fails.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Tracker]],
        name: str,
        folder: Path,
        on_trouble: Callable[[str], None],
    ) -> None:
        self._training = TrackedTraining(name, folder)
        self._path, self._on_trouble = folder / "trackers.json", on_trouble
        self._ids = _read_ids(self._path) if makers else {}
        self._lock = threading.Lock()
        self._feeds = {n: _Feed(make, partial(self._remember, n)) for n, make in makers.items()}
        self._started = False

    def __enter__(self) -> Self:
        """Start nothing yet: the first row says where the training begins."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the rows that are under way, a few seconds at most."""
        for feed in self._feeds.values():
            feed.end()
        until_s = time.monotonic() + _DRAIN_S
        for feed in self._feeds.values():
            feed.wait(until_s)
        self._report_troubles()

    def send(self, row: Mapping[str, Any]) -> None:
        """Hand a row of metrics.jsonl to every tracker; returns at once."""
        resumes = row.get("event") == "continued"  # the step of this row was sent before
        if not self._started:
            self._started = True
            training = replace(self._training, first_step=row["step"] + resumes)
            for name, feed in self._feeds.items():
                feed.start(replace(training, run_id=self._ids.get(name)))
        values = {name: float(row[name]) for name in _COLUMNS if row.get(name) is not None}
        if "val_loss" not in row:  # the row of the same step has the tokens
            values["tokens"] = float(row["tokens"])
        if not resumes:
            for feed in self._feeds.values():
                feed.put(Row(row["step"], row["tokens"], time.time(), values))
        self._report_troubles()

    def _report_troubles(self) -> None:
        for name, feed in self._feeds.items():
            if feed.trouble and not feed.reported:
                feed.reported = True
                unharmed = "the training is unharmed, and metrics.jsonl has every row"
                self._on_trouble(f"tracker {name}: {feed.trouble}; {unharmed}")

    def _remember(self, name: str, run_id: str) -> None:
        with self._lock:
            self._ids[name] = run_id
            write_json(self._path, self._ids)


class _Feed:
    """One tracker, its queue and its thread."""

    def __init__(self, make: Callable[[], Tracker], remember: Callable[[str], None]) -> None:
        self.trouble = ""  # the first thing that went wrong
        self.reported = False
        self._make, self._remember = make, remember
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._given_up = False
        self._thread: threading.Thread | None = None

    # --- in the thread of the training ---

    def start(self, training: TrackedTraining) -> None:
        # A daemon: the process ends when it wants to, whatever the tracker is waiting for.
        self._thread = threading.Thread(target=self._work, args=(training,), daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        with self._changed:
            if self._given_up:
                return
            if len(self._rows) < _MAX_WAITING:
                self._rows.append(row)
                self._changed.notify()
                return
        self._complain(f"it does not keep up, and rows are left out there after {row.step - 1:,}")

    def end(self) -> None:
        """Say that no more rows will come."""
        with self._changed:
            self._over.set()
            self._changed.notify()

    def wait(self, until_s: float) -> None:
        """Wait until the rows are sent, but not beyond a moment of the monotonic clock."""
        if self._thread is not None:
            self._thread.join(max(0.0, until_s - time.monotonic()))
            if self._rows and not self._given_up:
                self._complain(f"{len(self._rows):,} rows were not taken within {_DRAIN_S:g} s")

    # --- in the tracker's own thread ---

    def _work(self, training: TrackedTraining) -> None:
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

    def _open(self, tracker: Tracker, training: TrackedTraining) -> None:
        run_id = tracker.start(training)
        if run_id is not None and run_id != training.run_id:
            # Not tried again: that would open a second run.
            try:
                self._remember(run_id)
            except Exception as error:
                self._complain(_sentence(error))

    def _wait_for_rows(self) -> int:
        """Wait for rows; return how many to send now, 0 when all are sent and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._over.is_set())
            return min(len(self._rows), _BATCH)

    def _insist(self, call: Callable[[], object]) -> bool:
        """Call until it succeeds, less and less often; return whether it did in the end."""
        pause_s = _FIRST_PAUSE_S
        while True:
            is_last_try = self._over.is_set()
            try:
                call()
                return True
            except ImportError as error:
                self._complain(f'{_sentence(error)} (pip install "inheritune[trackers]")')
                return False
            except Exception as error:  # a tracker may raise whatever it likes
                self._complain(_sentence(error))
            if is_last_try:
                return False
            self._over.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _complain(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble


def _read_ids(path: Path) -> dict[str, str]:
    """Read the runs of an earlier start; what cannot be read begins new ones."""
    try:
        ids = read_json(path)
    except DataError:
        return {}
    pairs = ids.items() if isinstance(ids, dict) else ()
    return {name: run_id for name, run_id in pairs if isinstance(run_id, str)}


def _sentence(error: Exception) -> str:
    """Describe an error of a tracker, without the keys and addresses in it."""
    first = (str(error).strip().splitlines() or [""])[0]
    message = escape(_SECRET.sub(MASK, mask(first)), 160).rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
