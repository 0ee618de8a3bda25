import errno
import fcntl
import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import DataError, MachineError
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.system.files import write_json
from inheritune.system.strict_json import read_json

HOLD = """
import sys
from pathlib import Path
from inheritune.run_record.record import (RunRecord)
from inheritune.run_directory import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_new_run_has_a_record_and_nothing_else(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs" / "toy")
    assert names(run.root) == [".lock", "run.json"]
    assert run.read() == {"format": 1}


def test_creating_a_run_again_keeps_what_is_there(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "toy")
    run.update(RunRecord(name="toy"))
    run.tokens.mkdir()
    assert Run.create(tmp_path / "toy").read() == {"format": 1, "name": "toy"}
    assert run.tokens.is_dir()


def test_directory_left_before_the_first_record_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.tmp-0badcafe").write_text("{")
    assert Run.create(tmp_path).read() == {"format": 1}


def test_what_a_child_of_a_killed_writer_held_at_the_start_is_gone_at_the_end(
    tmp_path: Path,
) -> None:
    left = tmp_path / "toy" / "tokens" / ".compiled.tmp-0badcafe"
    left.mkdir(parents=True)
    (tmp_path / "toy" / "run.json").write_text('{"format": 1}')
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(
        descriptor, fcntl.LOCK_EX
    )  # what a compiler does that was not killed with its parent
    with Run.hold(tmp_path / "toy"):
        assert left.exists()
        os.close(descriptor)
    assert not left.exists()


def test_every_file_of_a_run_lies_below_its_root(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.variant("inherit", 4) == tmp_path / "variants" / "inherit" / "4-layers"
    places = [run.recipe_file, run.record_file, run.log_file, run.tokens, run.reference]
    places += [run.benchmark, run.target, run.report]
    assert [place.relative_to(tmp_path).as_posix() for place in places] == [
        "recipe.yaml",
        "run.json",
        "log.txt",
        "tokens",
        "reference",
        "benchmark.json",
        "target",
        "report",
    ]


def test_update_replaces_fields_and_keeps_the_others(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "toy")
    run.update(RunRecord(status="running", rounds=[]))
    run.update(RunRecord(status="done"))
    assert run.read() == {"format": 1, "status": "done", "rounds": []}
    assert run.read() == {"format": 1, "status": "done", "rounds": []}


def test_moved_run_goes_on(tmp_path: Path) -> None:
    Run.create(tmp_path / "before").update(RunRecord(status="running"))
    (tmp_path / "before").rename(tmp_path / "after ü")
    moved = Run.create(tmp_path / "after ü")
    moved.update(RunRecord(seconds=1.5))
    assert moved.read()["status"] == "running"


@pytest.mark.parametrize("record", [[], {}, {"format": "1"}, {"format": 0}, {"format": None}])
def test_record_without_its_format_is_refused(tmp_path: Path, record: Any) -> None:
    write_json(tmp_path / "run.json", record)
    with pytest.raises(DataError, match="not the record of a run"):
        Run(tmp_path).read()


def test_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"format": 2})
    with pytest.raises(DataError, match="has format 2, this inheritune reads 1"):
        Run(tmp_path).read()


def test_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "toy")
    command = [sys.executable, "-c", HOLD, str(run.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(MachineError) as caught, run.lock():
            pass
        assert f"process {holder.pid} on {platform.node()}" in str(caught.value)
        holder.kill()  # the system frees its lock
    with run.lock():
        pass


def test_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "toy")
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        assert json.loads((run.root / ".lock.json").read_text())["pid"] == os.getpid()
    assert ".lock.json" not in names(run.root)


def test_record_is_written_over_what_a_killed_writer_left(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "toy")
    (run.root / ".run.json.tmp-0badcafe").write_text("{")
    run.update(RunRecord(name="toy"))
    assert names(run.root) == [".lock", "run.json"]
    assert run.read() == {"format": 1, "name": "toy"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "inf" not in repr(value) and "\\ud" not in repr(value))


@given(value=JSON)
def test_json_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_mode_of_a_written_file_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        patch.setattr(Path, "replace", full)
        with pytest.raises(MachineError, match=r"a\.json: no space left on device\. Free some"):
            write_json(path, "new")
    assert read_json(path) == "old"
    assert names(tmp_path) == ["a.json"]


def test_number_that_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"val_loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[1e999]", "1e999 is too large a number"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_broken_json_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.json is not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    assert reason in caught.value.message


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*a\.json: no such file"):
        read_json(tmp_path / "a.json")
