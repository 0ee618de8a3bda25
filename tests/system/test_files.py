import errno
import os

import pytest

from inheritune.errors import MachineError, RecipeError
from inheritune.system.files import published, refuse_used_directory


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_the_machines_fault_and_leaves_nothing(tmp_path, monkeypatch, code):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="cannot write"), published(tmp_path / "out") as staging:
        (staging / "a").write_bytes(b"1")
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    with published(tmp_path / "out") as staging:
        (staging / "a").write_bytes(b"1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_bytes() == b"1"
    with pytest.raises(KeyboardInterrupt), published(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_writers_do_not_sweep_each_other(tmp_path):
    with published(tmp_path / "out") as first:
        with pytest.raises(RecipeError), published(tmp_path / "out") as second:
            assert first.is_dir() and second.is_dir()
            raise RecipeError("the second one gives up")
        assert first.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "full directory", "link to nothing"])
def test_what_is_there_is_never_overwritten(tmp_path, kind):
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
