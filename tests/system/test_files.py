import errno
import hashlib
import os
import stat
import subprocess
import sys

import pytest

from inheritune.errors import MachineError, RecipeError
from inheritune.system import files
from inheritune.system.files import (
    new_directory,
    refuse_used_directory,
    sha256,
    sync_file,
    write_bytes,
)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_the_machines_fault_and_leaves_nothing(tmp_path, monkeypatch, code):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(MachineError, match="cannot write"),
        new_directory(tmp_path / "out") as staging,
    ):
        (staging / "a").write_bytes(b"1")
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    with new_directory(tmp_path / "out") as staging:
        (staging / "a").write_bytes(b"1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_bytes() == b"1"
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_directory_takes_the_place_of_another_one_where_that_is_asked_for(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(KeyError), new_directory(out, replace=True):
        raise KeyError
    assert [p.name for p in out.iterdir()] == ["old"]
    with new_directory(out, replace=True) as staging:
        (staging / "new").touch()
    assert [p.name for p in out.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_writers_do_not_sweep_each_other(tmp_path):
    with new_directory(tmp_path / "out") as first:
        with pytest.raises(RecipeError), new_directory(tmp_path / "out") as second:
            assert first.is_dir() and second.is_dir()
            raise RecipeError("the second one gives up")
        assert first.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "full directory", "link to nothing"])
def test_used_directory_is_never_overwritten(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "full directory":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="already exists"):
        refuse_used_directory(out)


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from inheritune.system.files import write_bytes
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_bytes(Path(sys.argv[1]), b"new")
"""


@pytest.mark.skipif(os.name != "posix", reason="only POSIX tells whether a writer lives")
def test_staging_file_of_a_killed_writer_is_removed_by_the_next_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="only POSIX tells whether a writer lives")
def test_staging_file_of_a_living_writer_stays(tmp_path, monkeypatch):
    path, seen = tmp_path / "a", []
    fsync = os.fsync

    def write_meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        write_bytes(path, b"second")
        seen.extend(p.name for p in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    write_bytes(path, b"first")
    assert path.read_bytes() == b"first" and len(seen) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert (tmp_path / "a").read_bytes() == b"new" and not (tmp_path / "a").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_synced_file_has_the_mode_that_the_umask_asks_for(tmp_path):
    (tmp_path / "a").touch(0o600)
    sync_file(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~files.UMASK


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_sha256_is_that_of_the_whole_file(tmp_path, size):
    (tmp_path / "a").write_bytes(b"x" * size)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"x" * size).hexdigest()


def test_sha256_ends_when_its_check_raises(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt):
        sha256(tmp_path / "a", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
