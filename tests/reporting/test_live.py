"""A run that goes on: the page changes with it, without a reload, and on a terminal."""

import http.client
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from inheritune.reporting import live_server
from inheritune.reporting.live_server import (
    MAX_CONNECTIONS,
    Latest,
    LiveServer,
    live_page,
    open_server,
)
from inheritune.reporting.live_text import status_of
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import StageRecord, work_to_come


@pytest.fixture
def run(synthetic: ModuleType, tmp_path: Path) -> Path:
    """In its second round."""
    record = synthetic.record(status="running", result=None, variants=[], ledger=[], samples=[])
    del record["rounds"][1]
    run = synthetic.build_run(tmp_path, record)
    for name in ("scratch", "equal-compute"):
        shutil.rmtree(run / "variants" / name)
    return run


def _cut(run: Path, rows: int) -> list[str]:
    path = run / "variants/inherit/6-layers/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:rows]))
    return lines[rows:]


def test_a_page_is_made_anew_only_when_the_run_has_changed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.reporting.live_server._MIN_INTERVAL_S", 0.0)
    monkeypatch.setattr("inheritune.reporting.live_server._IDLE_PER_BUSY", 0.0)
    rest = _cut(run, 51)
    made = []
    latest = Latest(run, lambda root: made.append(root) or live_page(root))  # type: ignore[func-returns-value]
    first = latest.current()
    assert latest.current() is first and len(made) == 1
    assert b"step 50," in first.change
    with (run / "variants/inherit/6-layers/metrics.jsonl").open("a") as file:
        file.writelines(rest[:10])
    second = latest.current()
    assert second.tag != first.tag and b"step 60," in second.change


def test_a_browser_that_knows_the_page_is_told_that_nothing_has_changed(run: Path) -> None:
    with open_server(0, Latest(run, live_page).current) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        connection.request("GET", f"/{server.token}/live")
        answer = connection.getresponse()
        tag, change = answer.headers["ETag"], json.loads(answer.read())
        connection.request("GET", f"/{server.token}/live", headers={"If-None-Match": tag})
        again = connection.getresponse()
        assert (again.status, again.read(), again.headers["ETag"]) == (304, b"", tag)
        server.shutdown()
    assert change["title"] == "Running · demo · inheritune"
    assert set(change["charts"]["specs"]) == {"val-loss", "val-loss-log", "training-loss", "speed"}
    assert f'data-tag="{tag[1:-6]}"' in live_page(run).page.decode()


def test_the_live_page_may_ask_its_own_server_and_a_report_nobody(run: Path) -> None:
    assert b"connect-src &#39;self&#39;" in live_page(run).page


def test_watching_writes_nothing(run: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    live_page(run), status_of(run)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_a_directory_that_holds_no_run_yet_is_waited_for(tmp_path: Path) -> None:
    page, status = live_page(tmp_path).page.decode(), status_of(tmp_path)
    assert "Starting" in page and f"<span>{tmp_path.name}</span>" in page
    assert "Not in this run" not in page and "No round of the target" not in page
    assert status.lines[0] == f"{tmp_path.name}: starting" and not status.ended
    assert status.lines[-1].startswith("Starting: there is no record of a run here yet")
    (tmp_path / "run.json").write_text("{")
    assert "is not JSON" in live_page(tmp_path).page.decode()
    assert "is not JSON" in status_of(tmp_path).lines[-1]


def test_the_text_says_where_the_run_stands(run: Path) -> None:
    _cut(run, 51)
    status = status_of(run)
    assert (status.outcome, status.ended) == ("unfinished", False)
    written = "\n".join(status.lines)
    for words in (
        "demo: running",
        "reference loss  2.100 nats per token",
        "round 1, 4 layers: val_loss 2.213 (+0.113), 1M tokens",
        "[############............] 50%",
        "12,000 tokens/s, 42 s left",
    ):
        assert words in written


def _with_stages(synthetic: ModuleType, root: Path) -> Path:
    """In its second round, with a control and a measurement to come."""
    training = {"variant": "inherit", "tokens": 1_000_000}
    stages = [
        {"name": "text", "began_at": "2026-11-21T06:40:00Z", "seconds": 12.0},
        training | {"name": "inherit, 4 layers", "layers": 4, "began_at": "x", "seconds": 60.1},
        training | {"name": "inherit, 6 layers", "layers": 6, "began_at": "x"},
        training | {"name": "inherit, 8 layers", "layers": 8, "optional": True},
        {"name": "scratch", "variant": "scratch", "tokens": 1_000_000},
        {"name": "samples"},
    ]
    record = synthetic.record(status="running", result=None, variants=[], ledger=[], samples=[])
    del record["rounds"][1]
    run = synthetic.build_run(root, record | {"stages": stages})
    for name in ("scratch", "equal-compute"):
        shutil.rmtree(run / "variants" / name)
    _cut(run, 51)
    return run


def test_the_stages_of_a_run_are_listed_with_the_time_that_all_will_take(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    run = _with_stages(synthetic, tmp_path)
    written = "\n".join(status_of(run).lines)
    for words in (
        "✓ text               12 s",
        "✓ inherit, 4 layers  60 s",
        "> inherit, 6 layers  now",
        "· inherit, 8 layers  1M tokens, only if none before it matches",
        "· scratch            1M tokens",
        "· samples            to come",
        " (reference 2.100, +",
        # 500K tokens of this round, and 1M of scratch at its size, at 12,000 tokens/s
        "42 s left; all trainings done in about 2 min 5 s",
        "Running: stage 3 of 6 is inherit, 6 layers; 1 round has ended.",
    ):
        assert words in written, words
    page = live_page(run).page.decode()
    assert "Not in this run" not in page
    assert page.count('<li class="done">') == 2 and page.count('<li class="later">') == 3
    specs = json.loads(live_page(run).change)["charts"]["specs"]
    assert specs["val-loss"]["usermeta"]["planned"] == {"tokens": 2_000_000}


def test_a_control_of_equal_compute_is_expected_to_take_as_long_as_all_rounds() -> None:
    rounds = [
        StageRecord(variant="inherit", layers=4, tokens=100, began_at="x", seconds=1.0),
        StageRecord(variant="inherit", layers=6, tokens=100, began_at="x"),
        StageRecord(variant="inherit", layers=8, tokens=100, optional=True),
    ]
    assert work_to_come([*rounds, StageRecord(variant="scratch")], 6) == 400 + 600
    assert work_to_come([*rounds, StageRecord(name="tasks")], 6) == 0


def test_nobody_works_on_the_run_of_a_killed_process(run: Path) -> None:
    _cut(run, 51)
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    latest = Latest(run, status_of)
    holder = {"pid": os.getpid(), "machine": platform.node()}
    (run / ".lock.json").write_text(json.dumps(holder))
    assert "demo: running" in latest.current().lines[0]
    (run / ".lock.json").write_text(json.dumps(holder | {"pid": killed.pid}))
    latest._next = 0.0  # two seconds later
    written = "\n".join(latest.current().lines)
    assert "demo: interrupted" in written and "nobody works on it" in written
    assert latest.current().ended
    assert "run it again to continue" in written
    assert " left" not in written and "12,000 tokens/s" in written
    assert "he run stopped" in live_page(run).page.decode()
    (run / ".lock.json").write_text(json.dumps({"pid": killed.pid, "machine": "elsewhere"}))
    assert "demo: running" in status_of(run).lines[0] and not status_of(run).ended


def test_the_text_of_a_finished_run_is_its_verdict(synthetic: ModuleType, tmp_path: Path) -> None:
    status = status_of(synthetic.build_run(tmp_path))
    assert (status.outcome, status.ended) == ("matched", True)
    assert status.lines[2].startswith("Matched: the target with 6 of 8 layers")


def test_a_name_cannot_send_commands_to_a_terminal(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path, synthetic.record(name="\x1b[2Jx\ny"))
    assert not any("\x1b" in line or "\n" in line for line in status_of(run).lines)


def _watch(run: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "inheritune", "watch", str(run), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CI": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_the_watch_with_0(run: Path) -> None:
    watch = _watch(run, "--port", "0", "--json")
    assert watch.stdout is not None
    told = ""
    while not told.rstrip().endswith("}"):
        line = watch.stdout.readline()
        assert line, watch.communicate()[1]
        told += line
    assert json.loads(told)["url"].startswith("http://127.0.0.1:")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 0


def test_without_a_terminal_the_text_is_plain_and_ends_with_the_run(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    watch = _watch(synthetic.build_run(tmp_path), "--text")
    out, err = watch.communicate(timeout=120)
    assert watch.returncode == 0, err
    assert "Matched: the target" in out and "\x1b" not in out


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    watch = _watch(tmp_path / "missing", "--json")
    out, err = watch.communicate(timeout=120)
    assert watch.returncode == 3
    assert json.loads(out)["error"] == "DataError" and "Traceback" not in err


@pytest.fixture
def server(run: Path) -> Iterator[LiveServer]:
    with open_server(0, Latest(run, live_page).current) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_request_that_trickles_in_frees_its_place_in_time(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_server, "_TIMEOUT_S", 1.0)
    trickling = [socket.create_connection(server.server_address) for _ in range(MAX_CONNECTIONS)]
    ends = time.monotonic() + 20
    status = 0
    for connection in trickling:
        connection.sendall(b"GET / HTTP/1.0\r\n")
    while status != 200 and time.monotonic() < ends:
        for connection in trickling:
            with suppress(OSError):
                connection.sendall(b"X-Slow: 1\r\n")
        time.sleep(0.2)
        with suppress(OSError, http.client.HTTPException):
            owner = http.client.HTTPConnection(*server.server_address, timeout=5)
            owner.request("GET", f"/{server.token}/")
            status = owner.getresponse().status
            owner.close()
    for connection in trickling:
        connection.close()
    assert status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n", 414),
        (b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
        (b"POST /\r\n\r\n", 400),
        (b"PUT / HTTP/1.0\r\n\r\n", 405),
    ],
    ids=["words", "version", "number", "long", "headers", "old", "method"],
)
def test_a_request_that_cannot_be_parsed_is_refused_with_our_headers(
    server: LiveServer, request_bytes: bytes, status: int
) -> None:
    with socket.create_connection(server.server_address, timeout=30) as connection:
        connection.sendall(request_bytes)
        answer = b""
        with suppress(ConnectionResetError):  # what was sent is not all read
            while piece := connection.recv(65_536):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert b"\r\nX-Content-Type-Options: nosniff" in head and b"text/plain" in head
    assert body.startswith(b"%d " % status) and b"<" not in body


def test_a_control_of_equal_compute_is_planned_as_the_run_has_worked_it_out(
    synthetic: ModuleType,
) -> None:
    content = synthetic.record(
        recipe={"train": {"tokens": 300}, "variants": {"scratch": {"tokens": "equal_compute"}}},
        stages=[{"name": "scratch", "variant": "scratch", "layers": 4, "tokens": 514}],
    )
    assert RunRecord.model_validate(content).planned_tokens("scratch") == 514
    assert RunRecord.model_validate(content).planned_tokens("inherit") == 300
    del content["stages"]
    assert RunRecord.model_validate(content).planned_tokens("scratch") is None
