"""Inject faults into pages and the live page: broken runs, hostile texts, foreign requests."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.reporting.comparison import write_comparison
from inheritune.reporting.live_server import (
    HOST,
    MAX_CONNECTIONS,
    Latest,
    LiveServer,
    live_page,
    open_server,
)
from inheritune.reporting.page import write_report

LARGEST = 1_500_000
SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.S)
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "{{ 7*7 }}${7*7}",
    "</script><script>alert(1)//",
    "<!--<script>",
    "</style><style>*{display:none}",
    "javascript:alert(1)",
    "\u2028\u202e\x00\x1b[31m",
]


def _empty(run: Path, synthetic: ModuleType) -> str:
    (run / "run.json").write_text('{"format": 1}')
    return "There is no result."


def _running(run: Path, synthetic: ModuleType) -> str:
    synthetic.build_run(run.parent, synthetic.record(status="running", result=None, rounds=[]))
    return "run has not ended"


def _crashed(run: Path, synthetic: ModuleType) -> str:
    synthetic.build_run(run.parent, synthetic.record())
    (run / "run.json").write_text('{"format": 1, "name": "de')
    torn = run / "variants/inherit/6-layers/metrics.jsonl"
    torn.write_bytes(torn.read_bytes()[:-40])
    return "is not JSON"


def _without_record(run: Path, synthetic: ModuleType) -> str:
    synthetic.build_run(run.parent)
    (run / "run.json").unlink()
    return "cannot read"


def _one_row(run: Path, synthetic: ModuleType) -> str:
    synthetic.build_run(run.parent)
    for path in run.glob("variants/*/*/metrics.jsonl"):
        path.write_text(path.read_text().splitlines()[0] + "\n")
    return "Matched"


def _many_rows(run: Path, synthetic: ModuleType) -> str:
    synthetic.build_run(run.parent)
    row = '{{"step": {0}, "tokens": {0}000, "loss": 2.5, "grad_norm": 1.0, "elapsed_s": {0}.5}}\n'
    path = run / "variants/scratch/6-layers/metrics.jsonl"
    with path.open("a") as file:
        file.writelines(row.format(step) for step in range(1001, 1_001_001))
    return "of the ordinary steps is read"


def _many_variants(run: Path, synthetic: ModuleType) -> str:
    record = synthetic.record()
    arms = [record["variants"][2] | {"name": f"arm-{index}"} for index in range(20)]
    record["variants"] += [arm | {"path": f"variants/{arm['name']}/6-layers"} for arm in arms]
    synthetic.build_run(run.parent, record)
    rows = synthetic.metrics(1_000_000, 7.6, 2.2, steps=500, evals=500)
    for arm in arms:
        (run / "variants" / arm["name"] / "6-layers").mkdir(parents=True)
        (run / "variants" / arm["name"] / "6-layers" / "metrics.jsonl").write_text(rows)
    return "arm-19"


@pytest.mark.parametrize(
    "make",
    [
        *(_empty, _running, _crashed, _without_record, _one_row),
        pytest.param(_many_variants, marks=[pytest.mark.drawn, pytest.mark.slow]),
        pytest.param(_many_rows, marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault("E5")
def test_any_run_gives_a_small_page_that_says_what_is_missing(make, synthetic, tmp_path):
    run = tmp_path / "demo"
    if make is _empty:
        run.mkdir()
    says = make(run, synthetic)
    page = write_report(run)
    assert page.stat().st_size < LARGEST
    shown = unescape(SCRIPT.sub("", page.read_text(encoding="utf-8")))
    assert says in shown
    assert shown.rstrip().endswith("</html>")


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.fault("E6")
def test_nothing_in_a_record_executes(hostile, synthetic, tmp_path):
    record = synthetic.record(name=hostile, notes=[hostile], error=hostile, status=hostile)
    record["reference"]["model"] = record["tokens"]["source"] = hostile
    record["samples"][0]["text"] = record["ledger"][0]["item"] = hostile
    record["recipe"]["variants"][hostile] = {"start": hostile}
    run = tmp_path / "demo"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(record))
    version = live_page(run)
    write_comparison([run, synthetic.build_run(tmp_path / "other")], tmp_path / "c" / "index.html")
    pages = [
        write_report(run).read_bytes(),
        version.page,
        (tmp_path / "c" / "index.html").read_bytes(),
        json.loads(version.change)["main"].encode(),
    ]
    for page in pages:
        written = page.decode()
        runs = [text for kind, text in SCRIPT.findall(written) if "json" not in kind]
        assert not any(hostile in text for text in runs if len(hostile) > 12)
        markup = SCRIPT.sub("", written)
        assert not re.search(r"<(img src=x|svg onload|script>alert|style>\*)", markup)
        assert not re.search(r"""(href|src)=["']?javascript:""", markup)
        assert "49$49" not in markup
    for page in pages[:3]:
        assert "default-src 'none'; script-src " in unescape(page.decode())


@pytest.mark.fault("E7")
def test_a_page_loads_nothing_and_names_no_path_token_or_machine(synthetic, tmp_path):
    record = synthetic.record(status="failed", error=f"{tmp_path}/x: hf_abcdefghijkl")
    record["reference"]["model"] = str(tmp_path / "model")
    record["result"]["run"] = str(tmp_path / "demo")
    run = synthetic.build_run(tmp_path, record)
    version = live_page(run)
    pages = [write_report(run).read_text(encoding="utf-8"), version.page.decode()]
    for page in pages:
        assert str(tmp_path) not in page
        assert "hf_abcdefghijkl" not in page
        assert socket.gethostname() not in SCRIPT.sub("", page)
        markup = SCRIPT.sub("", page)
        loads = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)""", markup)
        assert all(address.startswith(("data:", "#")) for address in loads)
        assert not re.search(r"url\(|@import|http-equiv=.refresh", markup)
    own = [text for _, text in SCRIPT.findall(pages[1]) if 'getElementById("live")' in text]
    fetched = {address for text in own for address in re.findall(r'fetch\("(.*?)"', text)}
    assert fetched == {"live"}
    assert "fetch(" not in [text for _, text in SCRIPT.findall(pages[0])][-1]


# -- E11


@pytest.fixture
def server(synthetic: ModuleType, tmp_path: Path) -> Iterator[LiveServer]:
    run = tmp_path / "demo"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(synthetic.record()))
    (tmp_path / "secret.txt").write_text("beside the run")
    with open_server(0, Latest(run, live_page).current) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def _ask(server: LiveServer, method: str, path: str, host: str = "") -> tuple[int, bytes]:
    port = server.server_address[1]
    with socket.create_connection((HOST, port), timeout=60) as connection:
        request = f"{method} {path} HTTP/1.0\r\nHost: {host or f'{HOST}:{port}'}\r\n\r\n"
        connection.sendall(request.encode())
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        return answer.status, answer.read()


@pytest.mark.fault("E11")
def test_watch_answers_only_whoever_has_the_address(server):
    secret = server.token
    assert _ask(server, "GET", f"/{secret}/")[0] == 200
    assert _ask(server, "GET", f"/{secret}/live")[0] == 200
    assert _ask(server, "HEAD", f"/{secret}/") == (200, b"")
    for path in ("/", "/live", "/x/", f"/{secret[:-1]}/", f"/{secret}x/live"):
        assert _ask(server, "GET", path)[0] in (403, 404), path
    assert _ask(server, "GET", "/wrong/live")[0] == 403
    for host in ("evil", "evil:80", f"evil:{server.server_address[1]}", "127.0.0.1", ""):
        if host:
            assert _ask(server, "GET", f"/{secret}/", host)[0] == 403, host


@pytest.mark.fault("E11")
def test_watch_never_leaves_the_run_and_never_writes(server, tmp_path):
    secret = server.token
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        f"/{secret}/../secret.txt",
        f"/{secret}/%2e%2e/secret.txt",
        f"/{secret}/run.json",
        f"/{secret}//etc/passwd",
        f"/{secret}/live/../../secret.txt",
        f"/{secret}/..%5csecret.txt",
    ):
        status, body = _ask(server, "GET", path)
        assert status == 404, path
        assert b"beside the run" not in body and b"root:" not in body
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
        assert _ask(server, method, f"/{secret}/")[0] == 405, method
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


@pytest.mark.fault("E11")
def test_watch_keeps_its_threads_few_whatever_the_connections(server):
    port, secret = server.server_address[1], server.token
    before = threading.active_count()
    silent = []
    try:
        for _ in range(300):
            silent.append(socket.create_connection((HOST, port), timeout=60))
        deadline = time.monotonic() + 60
        while threading.active_count() < before + MAX_CONNECTIONS and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before + MAX_CONNECTIONS
    finally:
        for connection in silent:
            connection.close()
    deadline = time.monotonic() + 60
    while (status := _ask(server, "GET", f"/{secret}/")[0]) == 503 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == 200


@pytest.mark.fault("E11")
def test_watch_takes_the_next_port_where_one_is_taken(server):
    taken = server.server_address[1]
    with open_server(taken, server.current) as other:
        assert other.server_address[1] > taken
        assert other.token != server.token


@pytest.mark.fault("E5")
def test_a_torn_record_beside_a_target_has_its_page_and_leaves_the_card(synthetic, tmp_path):
    run = synthetic.build_run(tmp_path)
    (run / "target").mkdir()
    (run / "target/config.json").write_text("{}")
    (run / "run.json").write_text('{"name": "de')
    done = CliRunner().invoke(app, ["report", str(run), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["report"].endswith("index.html")
    assert "the target's card is left unchanged" in done.stderr
    assert not (run / "target/README.md").exists()
