"""Serve a run's page while the run goes on: on this machine only, to whoever has its address.

The run is read again only when its files have changed.
"""

import hashlib
import hmac
import io
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
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from inheritune.errors import DataError, MachineError
from inheritune.reporting.document import document
from inheritune.reporting.embed import presentable, shortened
from inheritune.reporting.page import RunReport, page_content, page_title, read_report
from inheritune.reporting.vega import chart_data
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


T = TypeVar("T")

_MIN_INTERVAL_S = 2.0  # between two readings of the run
_IDLE_PER_BUSY = 4.0  # seconds of rest per second of reading: at most a fifth of a processor


@dataclass(frozen=True)
class Version:
    """One state of the page."""

    tag: str  # digest of what the page shows
    page: bytes  # the whole page, for a browser that opens it
    change: bytes  # JSON with title, main and charts, which a page that is open replaces


class Latest(Generic[T]):
    """Cache what ``make`` reads from a run, and make it anew when its files change. Thread-safe."""

    def __init__(self, root: Path, make: Callable[[Path], T]) -> None:
        self._root, self._make = root, make
        self._lock = threading.Lock()
        self._files: object = None
        self._made: list[T] = []
        self._next = 0.0

    def current(self) -> T:
        """Return the value for the run as it is now, or was a moment ago."""
        with self._lock:
            began = time.monotonic()
            if self._made and began < self._next:
                return self._made[0]
            busy = time.thread_time()
            files = _file_states(self._root)
            if not self._made or files != self._files:
                self._made, self._files = [self._make(self._root)], files
            took_s = time.thread_time() - busy
            self._next = began + max(_MIN_INTERVAL_S, _IDLE_PER_BUSY * took_s)
            return self._made[0]


def live_page(root: Path) -> Version:
    """Build the page of a run for a browser that stays open."""
    report = _read(root)
    main, title = page_content(report, {}), page_title(report)
    charts = chart_data({chart.name: chart.spec for chart in report.charts})
    parts = {"title": title, "main": main, "charts": charts}
    change = json.dumps(parts, ensure_ascii=False, allow_nan=False).encode()
    tag = hashlib.sha256(change).hexdigest()[:24]
    page = document(title, main, report.charts, shortened(report.content), live_tag=tag)
    return Version(tag, page, change)


def _read(root: Path) -> RunReport:
    try:
        return read_report(root)
    except DataError as error:
        # The directory may be about to be filled, or a file may be half written.
        starting = RunRecord(status="starting", name=presentable(root.name))
        is_there = Run(root).record_file.exists()
        return RunReport({}, starting, problems=[presentable(error.message)] if is_there else [])


def _file_states(root: Path) -> list[tuple[str, int, int]]:
    """List name, time and size of every file that the page is made from."""
    run = Run(root)
    # A killed process changes no file.
    states = [("abandoned", int(run.is_abandoned()), 0)]
    for path in [run.record_file, *(t.path / "metrics.jsonl" for t in run.trainings())]:
        try:
            status = path.stat()
        except OSError:
            continue
        states.append((str(path), status.st_mtime_ns, status.st_size))
    return states


# --- the server ---

HOST = "127.0.0.1"
MAX_CONNECTIONS = 16  # at the same time; further ones are told to come back
_NUM_PORTS = 50  # to try, from the one that was named
_TIMEOUT_S = 10  # for a request to arrive whole, and for an answer to be taken
_SAFETY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_BUSY = "".join(
    f"{line}\r\n"
    for line in [
        "HTTP/1.0 503 Service Unavailable",
        "Retry-After: 2",
        *(f"{name}: {value}" for name, value in _SAFETY_HEADERS.items()),
        "",
    ]
).encode()
_PAGE, _CHANGE = "", "live"


class LiveServer(ThreadingHTTPServer):
    """Serve one page to those who know its secret address; port 0: any that is free."""

    daemon_threads = True
    block_on_close = False  # Ctrl-C does not wait for a browser
    request_queue_size = 64

    def __init__(self, port: int, current: Callable[[], Version]) -> None:
        self.token = secrets.token_urlsafe(18)  # part of the address
        self.current = current
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the page, secret included."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    @property
    def hosts(self) -> set[str]:
        """Allowed Host headers; a page from elsewhere cannot reach the server by another name."""
        port = self.server_address[1]
        return {f"{HOST}:{port}", f"localhost:{port}"}

    def process_request(self, request: object, client_address: object) -> None:
        """Answer in a thread of its own, if one is free, else with 503."""
        connection = request
        assert isinstance(connection, socket.socket)
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                connection.settimeout(0.2)
                connection.sendall(_BUSY)
            self.shutdown_request(connection)
            return
        try:
            super().process_request(connection, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Answer, then free the thread's slot."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: a browser that goes away in the middle is no error of ours."""


def open_server(port: int, current: Callable[[], Version]) -> LiveServer:
    """Start a server on a port, or on the next one that is free.

    Raises:
        MachineError: None of the ports tried is free.
    """
    end = min(port + _NUM_PORTS, 65_536)
    for candidate in range(port, end):
        try:
            return LiveServer(candidate, current)
        except (OSError, OverflowError):
            continue
    raise MachineError(
        f"none of the ports {port} to {end - 1} can be used.", "Name another: --port 0 takes any."
    )


class _RequestReader(socket.SocketIO):
    """Reads a request that must arrive whole in time, however many reads it takes."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, "r")
        self._connection = connection
        self._ends = time.monotonic() + _TIMEOUT_S

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        remaining_s = self._ends - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining_s)
        return super().readinto(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "inheritune", ""
    default_request_version = "HTTP/1.0"  # else what cannot be parsed is answered without headers

    def setup(self) -> None:
        """Read from the connection with a deadline for the whole request."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection))

    def parse_request(self) -> bool:
        """Parse the request, and start the time limit of the answer."""
        is_valid = super().parse_request()
        self.connection.settimeout(_TIMEOUT_S)
        return is_valid

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that cannot be parsed like any other, not with Python's page."""
        self.close_connection = True
        self._refuse(HTTPStatus(code))

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        path = urlsplit(self.path).path
        token, slash, resource = path.removeprefix("/").partition("/")
        if resource not in (_PAGE, _CHANGE) or (token and not slash):
            self._refuse(HTTPStatus.NOT_FOUND)  # a request never names a file
        elif not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
        else:
            self._answer(resource)

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Callable[[], None]:
        # Any other method: the page can only be read.
        if name.startswith("do_"):
            return lambda: self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the address holds a secret."""

    def _answer(self, resource: str) -> None:
        version = self.server.current()
        tag = f'"{version.tag}-{resource or "page"}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache, private"}
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, headers)
        elif resource == _CHANGE:
            headers["Content-Type"] = "application/json"
            self._send(HTTPStatus.OK, headers, version.change)
        else:
            headers["Content-Type"] = "text/html; charset=utf-8"
            self._send(HTTPStatus.OK, headers, version.page)

    def _refuse(self, status: HTTPStatus) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        self._send(status, headers, f"{status.value} {status.phrase}\n".encode())

    def _send(self, status: HTTPStatus, headers: dict[str, str], body: bytes | None = None) -> None:
        if body is not None:
            headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in {**headers, **_SAFETY_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)
