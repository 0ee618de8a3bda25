import json
import os

import pytest

from inheritune.errors import MachineError
from inheritune.system import locks
from inheritune.system.locks import locked

BUSY = "another process works"


def test_lock_names_its_holder_to_everybody_else(tmp_path):
    lock = tmp_path / "made" / ".lock"
    with locked(lock, BUSY):
        assert json.loads((tmp_path / "made" / ".lock.json").read_text())["pid"] == os.getpid()
        named = rf"another process works: process {os.getpid()} on \S+\. Go away\."
        with (
            pytest.raises(MachineError, match=named),
            locked(lock, "another process works", "Go away."),
        ):
            pass
    with locked(lock, BUSY):
        pass
    assert not (tmp_path / "made" / ".lock.json").exists()


def test_lock_is_waited_for_as_long_as_the_caller_wants(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_RETRY_S", 0)
    answers = iter([True, True, False])
    lock = tmp_path / "lock"
    with locked(lock, BUSY), pytest.raises(MachineError), locked(lock, BUSY, "", answers.__next__):
        pass
    assert not list(answers)
