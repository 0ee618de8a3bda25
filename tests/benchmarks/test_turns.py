import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this distribution", allow_module_level=True)

TRAINING = """
from training.turns import Turns
steps = 0
turns = Turns(facts=lambda: {"steps": steps})
turns.note(precision="none")
while True:
    print("what a training prints is no answer", flush=True)
    steps += 1
    turns.step_done()
"""


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from training import driver

    return driver


def test_a_training_waits_for_its_turn_and_does_the_steps_asked_for():
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING],
        cwd=BENCHMARKS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    answers, _ = process.communicate("3\n2\nend\n", timeout=60)
    warm, first, second, last = map(json.loads, answers.splitlines())
    assert warm == {}
    assert first["seconds"] >= 0 <= second["seconds"]
    # Three to warm up; before each turn one that is not counted.
    assert last["steps"] == 3 + (1 + 3) + (1 + 2)
    assert last["precision"] == "none"
    assert process.returncode == 0


def test_a_training_that_dies_leaves_its_last_line(driver, tmp_path):
    from training.shapes import SHAPES

    child = driver.Child(driver.Program("none", "nothing"), SHAPES["tiny"], tmp_path / "program")
    with pytest.raises(driver.Died, match=r"No module named training\.nothing"):
        child.answer()
    child.close()


def test_a_ratio_is_the_median_of_the_rounds(driver):
    program = driver.Program("it", "it", seconds=[2.0, 9.0, 8.0], base=[1.0, 1.0, 2.0])
    assert program.ratio == 4.0
