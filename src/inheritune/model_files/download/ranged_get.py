"""Fetch byte ranges of Hub files over HTTP; check every answer, and resume a broken one."""

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

from inheritune.errors import MachineError, escape
from inheritune.model_files.download.hub import BACKOFF_S, TRY_LATER, hub_errors
from inheritune.model_files.download.partial_file import PartialFile, Range

_LONGEST_WAIT_S = 300  # the Hub counts requests in windows of five minutes
_WORTH_NEW_TRIES = 2**20  # bytes that have to arrive before failures are forgotten


class RangesRefusedError(Exception):
    """The server answers a request for a range with the whole file."""


class _RetryError(Exception):
    """The answer cannot be used; that of a new request may be."""

    def __init__(self, reason: str, wait_s: float = 0, other_version: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.other_version = other_version


class RangeClient:
    """A client for byte ranges of one model at one commit; threads may share it."""

    def __init__(self, model: str, commit: str) -> None:
        self.model, self.commit = model, commit
        self.cancelled = threading.Event()  # set it to end every request soon
        # Bytes written by all threads; more than was requested where the server ignores ranges.
        self.received = 0
        self._lock = threading.Lock()

    def fetch(self, file: PartialFile, part: Range, *, prefix: bool = False) -> None:
        """Fetch a range of a file and journal it, including what arrived before a failure.

        Args:
            prefix: The range begins the file: if the server ignores ranges, read the beginning of
                the whole file instead of raising.

        Raises:
            RangesRefusedError: The server sends the whole file instead of the range.
            SourceError: The Hub does not have the file, or does not show it to this account.
            MachineError: The server keeps failing, or the disk is full or read-only.
        """
        whole = prefix or part == (0, file.size)
        with file.opened() as descriptor:
            position = forgotten_at = part[0]
            failures = 0
            try:
                while position < part[1] and not self.cancelled.is_set():
                    problem = _RetryError("the answer was cut off")
                    try:
                        with closing(self._answer(file, (position, part[1]), whole)) as answer:
                            for data in answer:
                                file.write(descriptor, position, data)
                                position += len(data)
                                with self._lock:
                                    self.received += len(data)
                                if self.cancelled.is_set():
                                    return
                    except _RetryError as error:
                        problem = error
                    # A slow but steady connection must not run out of tries.
                    if position - forgotten_at >= _WORTH_NEW_TRIES:
                        failures, forgotten_at = 0, position
                    if position < part[1]:
                        self._wait(file, problem, failures)
                        failures += 1
            finally:
                file.keep(descriptor, part[0], position)

    def _wait(self, file: PartialFile, problem: _RetryError, failures: int) -> None:
        if failures < len(BACKOFF_S):
            wait_s = min(max(BACKOFF_S[failures], problem.wait_s), _LONGEST_WAIT_S)
            self.cancelled.wait(wait_s)
            return
        name = escape(file.name)
        if problem.other_version:
            file.discard()
            raise MachineError(
                f"{name} of {self.model} changed on the server while it was downloaded: {problem}.",
                "Run the same command again: the file is then downloaded anew.",
            )
        raise MachineError(
            f"cannot get {name} of {self.model} from the Hub: {problem}.",
            "What has arrived is kept: run the same command again to continue.",
        )

    def _answer(self, file: PartialFile, part: Range, whole: bool) -> Generator[bytes, None, None]:
        """Yield the bytes of a range from one answer, which may end early."""
        position, end = part
        headers = {"Accept-Encoding": "identity"}  # in compressed bytes, offsets mean nothing
        if (position, end) != (0, file.size):
            headers["Range"] = f"bytes={position}-{end - 1}"
        with hub_errors(self.model, self.commit), self._stream(file.name, headers) as response:
            _refuse_status(response)
            etag = _etag(response)
            if not file.claim(etag):
                reason = f"its ETag is {escape(etag)!r}, after {escape(file.etag)!r}"
                raise _RetryError(reason, other_version=True)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise _RetryError("the answer is compressed")
            if response.status_code == 206:
                last = _last_byte(response.headers.get("Content-Range", ""), position, file.size)
                yield from _body(response, 0, last + 1 - position, end - position)
            elif whole:
                length = response.headers.get("Content-Length", str(file.size))
                if length != str(file.size):
                    raise _RetryError(f"it has {escape(length)} bytes, not {file.size:,}")
                yield from _body(response, position, file.size, end - position)
            else:
                raise RangesRefusedError

    @contextmanager
    def _stream(self, name: str, headers: dict[str, str]) -> Iterator[Any]:
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        import inheritune

        # Every request goes to the Hub, since the addresses that it redirects to expire. The
        # library's session keeps the Range over a redirect, and drops the token on another host.
        url = hf_hub_url(self.model, name, revision=self.commit)
        ours = build_hf_headers(library_name="inheritune", library_version=inheritune.__version__)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream(
                "GET", url, headers=ours | headers, timeout=timeout
            ) as response:
                yield response
        except Exception as error:
            # Compared by name: the library may use httpx or httpx2.
            if not any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
                raise
            raise _RetryError(f"{type(error).__name__}: {escape(error, 120)}") from error


def _refuse_status(response: Any) -> None:
    from huggingface_hub import hf_raise_for_status

    status = response.status_code
    if status in TRY_LATER:
        raise _RetryError(f"it answers {status}", _requested_wait_s(response.headers))
    hf_raise_for_status(response)
    if status not in (200, 206):
        raise _RetryError(f"it answers {status}")


def _requested_wait_s(headers: Any) -> float:
    if (after := headers.get("Retry-After", "")).isdecimal():
        return float(after[:9])
    spent = re.search(r"r=0;\s*t=(\d{1,9})", headers.get("ratelimit", ""))
    return float(spent[1]) + 1 if spent else 0.0


def _etag(response: Any) -> str:
    # The Hub sends its own ETag with the redirect; the hosts of the content send others.
    for answer in (*response.history, response):
        if linked := answer.headers.get("X-Linked-Etag"):
            return str(linked).removeprefix("W/").strip('"')
    return str(response.headers.get("ETag", "")).removeprefix("W/").strip('"')


def _last_byte(content_range: str, position: int, size: int) -> int:
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range.strip())
    first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
    if total != size or first != position or last < first:
        raise _RetryError(
            f"asked for bytes from {position:,} of {size:,}, it sends {escape(content_range)!r}"
        )
    return last


def _body(response: Any, skip: int, length: int, limit: int) -> Iterator[bytes]:
    """Yield at most ``limit`` bytes after the first ``skip``; refuse a body over ``length``."""
    end = 0
    for data in response.iter_raw():
        start, end = end, end + len(data)
        if end > length:
            raise _RetryError(f"it sends more than the {length:,} bytes it announced")
        part = data[max(0, skip - start) : max(0, skip + limit - start)]
        if part:
            yield part
        if end >= skip + limit:
            return
