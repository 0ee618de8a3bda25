"""Servers that fail, and downloads that are stopped, killed, or made twice at once."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from hub_server import COMMIT, MODEL, SHARDS, environment, wait_until
from remote_model import equal, ranges_of, weights_sent, write_model

from inheritune.errors import MachineError
from inheritune.model_files.download import listing as mirror_lock
from inheritune.model_files.download.partial import open_partial


@pytest.mark.parametrize(
    "faults",
    [
        *([500], [503, 502, 500], [429], ["cut off"], ["short"], ["cut off"] * 4, ["other range"]),
        *(["other size"], ["too long"], ["compressed"], ["etag"], ["cut off", "etag", 500]),
    ],
    ids=str,
)
def test_a_fault_that_passes_leaves_no_trace(hub, repository, faults):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 5)
    hub.faults.extend(faults)
    remote.download(wanted)
    assert not hub.faults
    equal(remote, repository, wanted)


def test_faults_while_headers_are_read_pass_too(hub, repository):
    hub.faults.extend([500, "cut off", "short", "other range"])
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 6)
    remote.download(wanted)
    equal(remote, repository, wanted)


def test_a_cut_off_answer_goes_on_where_it_stopped(hub, repository):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 6)
    missing, before = remote.missing_bytes(wanted), weights_sent(hub)
    hub.faults.extend(["cut off", "short", "cut off"])
    remote.download(wanted)
    assert weights_sent(hub) - before == missing
    equal(remote, repository, wanted)


@pytest.mark.parametrize(
    "fault, words",
    [
        (500, "it answers 500"),
        (429, "it answers 429"),
        ("other size", "it sends 'bytes"),
        ("compressed", "compressed"),
        ("etag", "changed on the server"),
    ],
)
def test_a_lasting_fault_is_named_with_the_way_out(hub, repository, fault, words):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 5)
    hub.always = fault
    with pytest.raises(MachineError, match=words) as error:
        remote.download(wanted)
    assert "run the same command again" in str(error.value).lower()
    hub.always = None
    remote = open_partial(MODEL, None)
    remote.download(wanted)
    equal(remote, repository, wanted)


def test_a_server_that_is_gone_is_named(hub, monkeypatch):
    remote = open_partial(MODEL, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.always = "hang"
    with pytest.raises(MachineError, match=r"cannot get .* of someone/model .*ReadTimeout"):
        remote.download(ranges_of(remote.directory, 1)[:1])


def test_another_version_midway_is_never_mixed_in(hub, repository, tmp_path):
    remote = open_partial(MODEL, None)
    wanted = [(SHARDS[0], *rest) for name, *rest in ranges_of(remote.directory, 2)]
    hub.faults.extend([None, None])
    hub.always = "etag"
    with pytest.raises(MachineError, match="changed on the server"):
        remote.download(wanted)
    journals = tmp_path / "hf/inheritune/models--someone--model/journal" / COMMIT
    assert not (journals / f"{SHARDS[0]}.jsonl").exists()
    hub.always = None
    write_model(tmp_path / "new", seed=1)
    shutil.copyfile(tmp_path / "new" / SHARDS[0], repository / SHARDS[0])
    remote = open_partial(MODEL, None)
    remote.download(wanted)
    equal(remote, repository, wanted)


def test_a_server_without_ranges_sends_each_file_once(hub, repository):
    hub.ranges = False
    remote = open_partial(MODEL, None)
    assert {len(hub.asked(shard)) for shard in SHARDS} == {1}  # its beginning
    assert hub.sent(".bin") == 0
    wanted = ranges_of(remote.directory, 5)
    hub.log.clear()
    remote.download(wanted)
    for shard in SHARDS:
        whole = [r for r in hub.asked(shard) if r.range is None]
        assert len(whole) == 1
        assert whole[0].sent == (repository / shard).stat().st_size
        assert (remote.directory / shard).read_bytes() == (repository / shard).read_bytes()
    assert remote.missing_bytes(ranges_of(remote.directory, 6)) == 0


def test_a_server_without_ranges_may_be_cut_off(hub, repository):
    hub.ranges = False
    remote = open_partial(MODEL, None)
    hub.faults.extend([None, "cut off", "cut off", 500])
    wanted = [(SHARDS[0], *rest) for name, *rest in ranges_of(remote.directory, 2)]
    remote.download(wanted)
    assert (remote.directory / SHARDS[0]).read_bytes() == (repository / SHARDS[0]).read_bytes()


def test_a_server_may_refuse_ranges_midway(hub, repository):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 6)
    hub.faults.extend([None, None, "whole"])
    remote.download(wanted)
    equal(remote, repository, wanted)


PROGRAM = """
import sys
from inheritune.model_files.download import ranged_get
from inheritune.model_files.download import partial as remote
remote._PART = 20_000
files = remote.open_partial("someone/model", None)
files.download([tuple(r) for r in __import__("json").loads(sys.argv[1])])
"""


def start(hub, tmp_path, wanted):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(wanted)],
        env=environment(hub, tmp_path / "hf"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("answers_before", [2, 9])
def test_a_killed_download_goes_on(hub, repository, tmp_path, answers_before):
    wanted = ranges_of(repository, 6)
    hub.faults.extend([None] * (6 + answers_before))  # two answers for each header
    hub.always = "hang"
    process = start(hub, tmp_path, wanted)
    wait_until(lambda: not hub.faults and len(hub.asked(".safetensors")) >= 10 + answers_before)
    process.kill()
    process.wait()
    hub.always = None
    hub.go_on.set()
    remote = open_partial(MODEL, None)
    missing, before = remote.missing_bytes(wanted), weights_sent(hub)
    # What was complete when the process died is not fetched again.
    total = sum(size for _, _, size in wanted)
    assert missing <= total - 20_000 * (answers_before - 2)
    remote.download(wanted)
    assert weights_sent(hub) - before == missing
    equal(remote, repository, wanted)


def test_two_processes_at_once_share_the_work(hub, repository, tmp_path):
    wanted = ranges_of(repository, 6)
    processes = [start(hub, tmp_path, wanted) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    remote = open_partial(MODEL, None)
    assert remote.missing_bytes(wanted) == 0
    equal(remote, repository, wanted)
    total = sum((repository / shard).stat().st_size for shard in SHARDS)
    assert weights_sent(hub) <= 1.05 * total


def test_bytes_that_arrive_while_a_process_waits_are_not_fetched_again(
    hub, repository, tmp_path, monkeypatch
):
    first = open_partial(MODEL, None)
    wanted = ranges_of(repository, 6)
    first.download(wanted)
    root = first.directory.parent
    weights = [*root.rglob("*.safetensors"), *root.rglob("*.safetensors.jsonl")]  # and journals
    for number, path in enumerate(weights):
        path.rename(tmp_path / str(number))
    sent, waits, locked = weights_sent(hub), threading.Event(), mirror_lock.locked

    def watched(path, busy, wait):
        return locked(path, busy, wait=lambda: waits.set() or wait())

    monkeypatch.setattr(mirror_lock, "locked", watched)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(root / ".lock"):
            opened = pool.submit(open_partial, MODEL, None)
            assert waits.wait(60)
            for number, path in enumerate(weights):
                (tmp_path / str(number)).rename(path)
        opened.result().download(wanted)
    assert weights_sent(hub) == sent
    equal(first, repository, wanted)


def test_an_interrupted_download_goes_on_later(hub, repository):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 6)
    told = []

    def interrupt(progress):
        told.append(progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.download(wanted, on_progress=interrupt)
    remote.download(wanted, on_progress=told.append)
    assert (told[-1].done, told[-1].unit) == (told[-1].total, "bytes")
    equal(remote, repository, wanted)
