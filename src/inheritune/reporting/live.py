"""A run as it is now: read again only when its files have changed."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from inheritune.errors import DataError
from inheritune.reporting.document import chart_data, document
from inheritune.reporting.embed import as_data_script, presentable, shortened
from inheritune.reporting.page import Report, read_report, rendered, title_of

__all__ = ["Latest", "Version", "live_page"]

T = TypeVar("T")


_EVERY_S = 2.0  # at most so often is the run read
_SHARE = 4.0  # and for no more than a fifth of a processor


@dataclass(frozen=True)
class Version:
    """One state of the page.

    Attributes:
        tag: Changes with what the page shows, and only then.
        page: The whole page, for a browser that opens it.
        change: JSON of what a page that is open replaces: title, main, charts.
    """

    tag: str
    page: bytes
    change: bytes


class Latest(Generic[T]):
    """What was last made of a run, made anew when it has changed; any number of threads may ask.

    Args:
        root: The run's directory. Nothing is written to it.
        make: Reads it.
    """

    def __init__(self, root: Path, make: Callable[[Path], T]) -> None:
        self._root, self._make = root, make
        self._lock = threading.Lock()
        self._seen: object = None
        self._made: list[T] = []
        self._next = 0.0

    def current(self) -> T:
        """As the run is now, or was a moment ago."""
        with self._lock:
            began = time.monotonic()
            if self._made and began < self._next:
                return self._made[0]
            busy = time.thread_time()
            seen = _files_of(self._root)
            if not self._made or seen != self._seen:
                self._made, self._seen = [self._make(self._root)], seen
            took = time.thread_time() - busy
            self._next = began + max(_EVERY_S, _SHARE * took)
            return self._made[0]


def live_page(root: Path) -> Version:
    """The page of a run, for a browser that stays open."""
    report = _read(root)
    main, title = rendered(report, {}), title_of(report)
    charts = {chart.name: chart.spec for chart in report.charts}
    parts = {"title": title, "main": main, "charts": chart_data(charts)}
    change = json.dumps(parts, ensure_ascii=False, allow_nan=False).encode()
    tag = hashlib.sha256(change).hexdigest()[:24]
    page = document(title, main, charts, as_data_script(shortened(report.record)), live=tag)
    return Version(tag, page, change)


def _read(root: Path) -> Report:
    try:
        return read_report(root)
    except DataError as error:
        # The directory may be about to be filled, or be in the middle of something.
        return Report({}, [], [], [], [], [presentable(error.message)])


def _files_of(root: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of every file that the page is made from."""
    found = []
    for path in [root / "run.json", *sorted(root.glob("variants/*/*-layers/metrics.jsonl"))]:
        try:
            now = path.stat()
        except OSError:
            continue
        found.append((str(path), now.st_mtime_ns, now.st_size))
    return found
