"""The live page over HTTP: on this machine, for whoever has its address, and nothing but it.

A run as it is now: read again only when its files have changed.
"""

import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from inheritune.errors import DataError, MachineError
from inheritune.reporting.document import chart_data, document
from inheritune.reporting.embed import as_data_script, presentable, shortened
from inheritune.reporting.page import Report, read_report, rendered, title_of

__all__ = [
    "HOST",
    "MOST_CONNECTIONS",
    "Latest",
    "LiveServer",
    "Version",
    "live_page",
    "open_server",
]

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


HOST = "127.0.0.1"
MOST_CONNECTIONS = 16  # at the same time; the rest are told to come back
_PORTS = 50  # tried, from the one asked for
_SILENCE_S = 10  # after which a connection that says nothing is closed
_PAGE, _CHANGE = "", "live"


class LiveServer(ThreadingHTTPServer):
    """Serves one page to those who know its secret.

    Args:
        port: Of this machine; 0: any.
        current: Gives the page as it is now.

    Attributes:
        token: The secret part of the address, new with every server.
    """

    daemon_threads = True
    block_on_close = False  # Ctrl-C does not wait for a browser
    request_queue_size = 64

    def __init__(self, port: int, current: Callable[[], Version]) -> None:
        self.token = secrets.token_urlsafe(18)
        self.current = current
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is, secret included."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    @property
    def hosts(self) -> set[str]:
        """What a request may call this machine: a page elsewhere cannot borrow the address."""
        port = self.server_address[1]
        return {f"{HOST}:{port}", f"localhost:{port}"}

    def process_request(self, request: object, client_address: object) -> None:
        """Answer in a thread of its own, if one is free."""
        connection = request
        assert isinstance(connection, socket.socket)
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                connection.settimeout(0.2)
                connection.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 2\r\n\r\n")
            self.shutdown_request(connection)
            return
        try:
            super().process_request(connection, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Answer, then let the next one in."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a browser that goes away in the middle is no error of ours."""


def open_server(port: int, current: Callable[[], Version]) -> LiveServer:
    """A server on a port, or on the next one that is free.

    Raises:
        MachineError: None of the ports tried is free.
    """
    last = min(port + _PORTS, 65_536)
    for candidate in range(port, last):
        try:
            return LiveServer(candidate, current)
        except (OSError, OverflowError):
            continue
    raise MachineError(
        f"none of the ports {port} to {last - 1} can be used.", "Name another: --port 0 takes any."
    )


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "inheritune", ""
    timeout = _SILENCE_S

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        path = urlsplit(self.path).path
        given, slash, wanted = path.removeprefix("/").partition("/")
        if wanted not in (_PAGE, _CHANGE) or (given and not slash):
            self._refuse(HTTPStatus.NOT_FOUND)  # no file is ever looked up by what was asked for
        elif not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
        else:
            self._answer(wanted)

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Callable[[], None]:
        # Whatever method else: the page is read, never written to.
        if name.startswith("do_"):
            return lambda: self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the address holds a secret."""

    def _answer(self, wanted: str) -> None:
        version = self.server.current()
        tag = f'"{version.tag}-{wanted or "page"}"'
        if self.headers.get("If-None-Match") == tag:
            self._begin(HTTPStatus.NOT_MODIFIED, tag)
            self.end_headers()
            return
        body = version.change if wanted == _CHANGE else version.page
        kind = "application/json" if wanted == _CHANGE else "text/html; charset=utf-8"
        self._begin(HTTPStatus.OK, tag)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: HTTPStatus, tag: str) -> None:
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache, private")
        self._safety()

    def _refuse(self, status: HTTPStatus) -> None:
        body = f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self._safety()
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _safety(self) -> None:
        for name, value in (
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ):
            self.send_header(name, value)
