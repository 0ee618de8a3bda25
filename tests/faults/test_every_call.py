"""Disturb a tiny run at some of the calls that change its files; `make faults-deep` takes all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("every_call")


@pytest.mark.slow
@pytest.mark.fault("D40")
@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)
def test_a_fault_at_some_calls_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--stride", "400", "--first", "150", "--jobs", "1"]
    done = subprocess.run(
        [*command, "--results", tmp_path / "results.jsonl"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 not held" in done.stdout
