"""A real HTTP server in a thread that answers like the Hub: listings, files, ranges, and faults."""

import hashlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "1" * 40
INDEX = "model.safetensors.index.json"
MODEL = "someone/model"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@dataclass
class Request:
    """One request and what was answered."""

    path: str
    range: str | None
    token: str | None
    port: int
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass
class Hub:
    """What the server has and how it behaves; tests change it between requests.

    Attributes:
        model: Hub id.
        commits: Directory of each commit.
        revisions: Commit of each branch.
        ranges: Whether ranges are answered with ranges.
        cdn: Whether weight files are redirected to another port.
        refusal: Status and X-Error-Code of every answer, instead of an answer.
        down: Status of every answer of the API.
        drops: Requests to the API, counted from 0, whose connection is closed without an answer.
        says: Every answer of the API.
        faults: For the next answers with weights: a status, or one of the words in `_faulty`.
        always: The fault of every answer with weights.
        log: Every request.
    """

    model: str
    commits: dict[str, Path]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    ranges: bool = True
    cdn: bool = False
    refusal: tuple[int, str] | None = None
    down: int = 0
    drops: set[int] = field(default_factory=set)
    says: bytes | None = None
    faults: deque[object] = field(default_factory=deque)
    always: object = None
    log: list[Request] = field(default_factory=list)
    url: str = ""
    cdn_url: str = ""
    go_on: threading.Event = field(default_factory=threading.Event)

    def sent(self, suffix: str = "") -> int:
        """Bytes of all bodies of paths with this end."""
        return sum(request.sent for request in self.log if request.path.endswith(suffix))

    def asked(self, suffix: str = "") -> list[Request]:
        """Requests of paths with this end."""
        return [request for request in self.log if request.path.endswith(suffix)]

    def asked_of_the_api(self) -> list[Request]:
        """Requests that are not for files."""
        return [request for request in self.log if request.path.startswith("/api/")]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer on two ports, the Hub and its CDN, while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        hub.go_on.set()
        for server in servers:
            server.shutdown()
            server.server_close()


@contextmanager
def taken_for_the_hub(hub: Hub, home: Path) -> Iterator[None]:
    """Have the Hub's library ask this server, with a cache of its own, and not wait for long."""
    from huggingface_hub import close_session, constants

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setenv("HF_TOKEN", "hf_secret")
        patch.setattr(constants, "HF_HOME", str(home))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        patch.setattr("inheritune.model_files.download.ranged_get.BACKOFF_S", (0.01,) * 4)
        patch.setattr("inheritune.model_files.download.hub.BACKOFF_S", (0.01,) * 4)
        patch.setattr("inheritune.model_files.download.partial._PART", 20_000)
        close_session()
        yield
        close_session()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """The same for a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    return kept | {"HF_HOME": str(home), "HF_ENDPOINT": hub.url}


def listing(directory: Path) -> list[dict[str, object]]:
    """Files as the Hub lists them; weights as large files."""
    found = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        data = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"rfilename": path.relative_to(directory).as_posix(), "size": len(data)}
        if path.suffix in {".safetensors", ".bin"}:
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
            blob = "0" * 40
        found.append(entry | {"blobId": blob})
    return found


def _in_tree(entry: dict[str, object]) -> dict[str, object]:
    found = {"type": "file", "path": entry["rfilename"], "size": entry["size"]}
    if isinstance(large := entry.get("lfs"), dict):
        return found | {"oid": entry["blobId"], "lfs": large | {"oid": large["sha256"]}}
    return found | {"oid": entry["blobId"]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *arguments: object) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        token, port = headers.get("Authorization"), self.server.server_address[1]
        self.request_seen = Request(path, headers.get("Range"), token, port)
        self.hub.log.append(self.request_seen)
        if self.hub.refusal:
            status, code = self.hub.refusal
            return self.answer(status, {"X-Error-Code": code, "X-Error-Message": "its own words"})
        for kind in ("/api/models/", "/api/datasets/"):
            if path.startswith(kind):
                return self.answer_api(path.removeprefix(kind))
        if match := re.fullmatch(rf"/{self.hub.model}/resolve/([^/]+)/(.+)", path):
            return self.answer_file(match[1], match[2], on_cdn=False)
        if match := re.fullmatch(r"/cdn/([^/]+)/(.+)", path):
            return self.answer_file(match[1], match[2], on_cdn=True)
        return self.answer(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer_api(self, path: str) -> None:
        if len(self.hub.asked_of_the_api()) - 1 in self.hub.drops:
            self.close_connection = True
            return None
        if self.hub.down:
            return self.answer(self.hub.down, {})
        if self.hub.says is not None:
            return self.answer(200, {}, self.hub.says)
        if match := re.fullmatch(rf"{self.hub.model}/tree/([^/]+)", path):
            if match[1] not in self.hub.commits:
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return self.answer_json([_in_tree(e) for e in listing(self.hub.commits[match[1]])])
        model, _, revision = path.partition("/revision/")
        if model != self.hub.model:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        revision = revision or "main"
        commit = self.hub.revisions.get(revision, revision)
        if commit not in self.hub.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        found = {"id": model, "sha": commit, "siblings": listing(self.hub.commits[commit])}
        return self.answer_json(found)

    def answer_json(self, value: object) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer_file(self, commit: str, name: str, on_cdn: bool) -> None:
        path = self.hub.commits.get(commit, Path("/nowhere")) / name
        if not path.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        fault = None
        if name.endswith(".safetensors"):
            if self.hub.cdn and not on_cdn:
                location = f"{self.hub.cdn_url}/cdn/{commit}/{name}"
                return self.answer(302, {"Location": location, "X-Linked-Etag": etag})
            if self.command == "GET":  # an answer to HEAD that ended its connection has to say so
                fault = self.hub.faults.popleft() if self.hub.faults else self.hub.always
        if isinstance(fault, int):
            return self.answer(fault, {"Retry-After": "0"})
        if on_cdn:
            etag = '"a word of the CDN"'
        etag = 'W/"another"' if fault == "etag" else etag
        return self.answer_bytes(data, {"ETag": etag, "X-Repo-Commit": commit}, fault)

    def answer_bytes(self, data: bytes, headers: dict[str, str], fault: object) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, body = 200, data
        if asked and self.hub.ranges and fault != "whole":
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            status, body = 206, data[first : last + 1]
            first += fault == "other range"
            total = len(data) + (fault == "other size")
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        if fault == "compressed":
            headers["Content-Encoding"] = "gzip"
        if fault == "flipped":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "too long":
            body += b"more"
        length, cut = len(body), None
        if fault == "short":  # consistent, but less than was asked for
            body = body[: len(body) // 2]
            length = len(body)
            if "Content-Range" in headers:
                headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{len(data)}"
        if fault in {"cut off", "hang"}:
            cut = len(body) // 2
        self.answer(status, headers, body[:cut], length, hang=fault == "hang")
        if cut is not None:
            self.close_connection = True

    def answer(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes = b"",
        length: int | None = None,
        hang: bool = False,
    ) -> None:
        self.request_seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for at in range(0, len(body), 4096):
                self.request_seen.sent += self.wfile.write(body[at : at + 4096])
            self.wfile.flush()
            if hang:
                self.hub.go_on.wait(20)
        except OSError:  # the client went away
            self.close_connection = True


def wait_until(condition, limit_s: float = 20) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
