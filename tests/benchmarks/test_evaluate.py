import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this distribution", allow_module_level=True)


@pytest.mark.slow
def test_both_ways_give_the_same_scores_and_stand_in_one_table():
    command = [sys.executable, BENCHMARKS / "evaluate.py", "--random", "--rounds", "1"]
    done = subprocess.run([*command, "--limit", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same scores" in done.stdout
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line[:1] == "|"]
    assert rows == ["", "---", "command", "answering"]
