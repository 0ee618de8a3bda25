"""A real HTTP server in a thread that takes models as the Hub does, and faults."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

WEIGHTS = (".safetensors", ".png")  # what the Hub keeps as large files


@dataclass
class Repo:
    """A repository: its files at each commit, oldest first."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"x"}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


@dataclass
class PushHub:
    """What the server has and how it behaves; tests change it between requests.

    Attributes:
        repos: By id.
        models: What the Hub says of other models, by id.
        role: Of the token.
        large: Uploaded large files by their SHA-256, committed or not.
        drops: Paths whose next request is not answered: its connection is closed.
        drop_after: How many requests that write are answered before connections break.
        log: Method and path of every request.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    models: dict[str, dict[str, object]] = field(default_factory=dict)
    role: str = "write"
    large: dict[str, bytes] = field(default_factory=dict)
    drops: set[str] = field(default_factory=set)
    drop_after: int | None = None
    log: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def uploads(self) -> list[str]:
        """Paths of all large files that were sent, whole or not."""
        return [path for method, path in self.log if method == "PUT"]


@contextmanager
def serve(hub: PushHub) -> Iterator[PushHub]:
    """Answer while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def taken_for_the_hub(hub: PushHub, home: Path, token: str | None = "hf_secret") -> Iterator[None]:
    """Have the Hub's library write to this server, in the protocol of plain HTTP, without waits."""
    import os

    from huggingface_hub import close_session, constants

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.lower().endswith("_proxy") or n == "HF_TOKEN"]:
            patch.delenv(name)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        for name in ("HF_HOME", "HF_HUB_CACHE"):
            patch.setattr(constants, name, str(home))
        for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
            patch.setattr(constants, name, str(home / "none"))
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        close_session()
        yield
        close_session()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *arguments: object) -> None:
        pass  # a connection that was broken, as asked for


class _Handler(BaseHTTPRequestHandler):
    hub: PushHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.headers.get("Content-Length") and self.headers.get("Transfer-Encoding"):
            body = self.read_chunks()
        self.hub.log.append((self.command, path))
        if self.breaks(path):
            self.close_connection = True
            self.connection.close()
            return
        self.answer(*self.result(path, body))

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def read_chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def breaks(self, path: str) -> bool:
        if path in self.hub.drops:
            self.hub.drops.remove(path)
            return True
        if self.hub.drop_after is None or not ("/commit/" in path or self.command == "PUT"):
            return False
        self.hub.drop_after -= 1
        return self.hub.drop_after < 0

    def result(self, path: str, body: bytes) -> tuple[int, object]:
        if self.command == "PUT":
            self.hub.large[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "auth": {"accessToken": {"role": self.hub.role}}}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self.place(o) for o in json.loads(body)["objects"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            if match[1] in self.hub.models:
                return 200, {"id": match[1], **self.hub.models[match[1]]}
            if match[1] in self.hub.repos:
                return self.of_repo(match[1], match[2] or "", body)
        return 404, {"error": "Repository Not Found"}

    def create(self, asked: dict[str, str]) -> tuple[int, object]:
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if asked["organization"] == "someone":
            return 403, {"error": "You don't have the rights to create a model under someone"}
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", **url}
        self.hub.repos[name] = Repo(asked["visibility"] == "private")
        return 200, url

    def place(self, large: dict[str, object]) -> dict[str, object]:
        if large["oid"] in self.hub.large:
            return large
        return large | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{large['oid']}"}}}

    def of_repo(self, name: str, rest: str, body: bytes) -> tuple[int, object]:
        repo = self.hub.repos[name]
        if rest in ("", "/revision/main"):
            return 200, {"id": name, "private": repo.private, "sha": "1" * 40}
        if rest == "/tree/main":
            return 200, [entry(path, data) for path, data in repo.files.items()]
        if rest == "/preupload/main":
            asked = json.loads(body)["files"]
            return 200, {"files": [self.mode(repo, one["path"]) for one in asked]}
        if rest == "/commit/main":
            self.commit(repo, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40}
        return 404, {}

    def mode(self, repo: Repo, path: str) -> dict[str, object]:
        large = path.endswith(WEIGHTS)
        known = entry(path, repo.files[path]) if path in repo.files else {}
        oid = known["lfs"]["oid"] if known and large else known.get("oid")
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def commit(self, repo: Repo, lines: list[dict[str, dict[str, str]]]) -> None:
        files = dict(repo.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        repo.commits.append(files)

    def answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def entry(path: str, data: bytes) -> dict[str, object]:
    """A file as the Hub lists it."""
    found: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
    found["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if path.endswith(WEIGHTS):
        sha = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return found
