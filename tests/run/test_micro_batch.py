"""`train.micro_batch: auto`: what it came to is kept, and decides nothing but the order of sums."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import Interrupted
from inheritune.run.pretraining import plan_pretraining, pretrain
from inheritune.run_directory import Run
from inheritune.system.progress import Progress
from inheritune.training import hardware

SETS = ["train.tokens=1280", "train.seq_len=16", "train.batch_tokens=128", "train.precision=fp32"]
SETS += ["train.learning_rate=1e-3", "train.warmup_tokens=0", "train.micro_batch=auto"]


def train(model: Path, tokens: TokenDirectory, out: Path, *sets: str, stop_at: int = 0) -> str:
    """Train a model; returns all messages."""
    heard = []

    def on_progress(progress: Progress) -> None:
        heard.append(progress.message)
        if progress.unit == "tokens" and progress.done == stop_at * 128 > 0:
            os.kill(os.getpid(), signal.SIGTERM)

    pretrain(plan_pretraining(str(model), tokens.path, out, [*SETS, *sets]), out, on_progress)
    return "\n".join(heard)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def settings(out: Path) -> dict[str, Any]:
    return Run(out).read()["settings"]


@pytest.fixture
def begun_with_four(
    tiny_reference: Path,
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A training stopped at step 4, on a device that has room for four sequences."""
    out = tmp_path / "begun"
    with monkeypatch.context() as smaller, pytest.raises(Interrupted):
        smaller.setattr(hardware, "MOST_ON_A_CPU", 4)
        train(tiny_reference, tiny_tokens, out, stop_at=4)
    return out


def test_a_training_goes_on_with_the_micro_batch_it_began_with(
    begun_with_four: Path, tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    heard = train(tiny_reference, tiny_tokens, begun_with_four)
    assert "continued from step 4 of 10" in heard
    assert settings(begun_with_four)["micro_batch"] == 4
    assert (
        settings(begun_with_four)["reasons"]["micro_batch"]
        == "as before, if 4 divides the step here"
    )
    train(tiny_reference, tiny_tokens, tmp_path / "four", "train.micro_batch=4")
    assert losses(begun_with_four) == losses(tmp_path / "four")  # to the last bit
    # Where nothing was begun, auto takes all eight sequences of a step; the losses are the same.
    train(tiny_reference, tiny_tokens, tmp_path / "eight")
    assert settings(tmp_path / "eight")["micro_batch"] == 8
    assert losses(tmp_path / "eight") == pytest.approx(losses(tmp_path / "four"), abs=1e-5)


def test_a_stated_micro_batch_overrides_what_auto_came_to(
    begun_with_four: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    train(tiny_reference, tiny_tokens, begun_with_four, "train.micro_batch=2")
    assert settings(begun_with_four)["micro_batch"] is None


def test_a_checkpoint_that_cannot_be_read_does_not_hide_what_a_training_began_with(
    begun_with_four: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    newer = begun_with_four / "checkpoints" / "step-00000009"
    newer.mkdir()
    (newer / "trainer.json").write_text("{")
    assert "passed over step-00000009" in train(tiny_reference, tiny_tokens, begun_with_four)
    assert settings(begun_with_four)["micro_batch"] == 4


@pytest.mark.slow
def test_other_processes_take_a_micro_batch_that_divides_their_share(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(tiny_reference, tiny_tokens, whole)
    with pytest.raises(Interrupted):
        train(tiny_reference, tiny_tokens, out, stop_at=4)
    command = [sys.executable, "-m", "inheritune", "train", str(tiny_reference)]
    command += [str(tiny_tokens.path), str(out), "--processes", "4"]
    command += [word for text in SETS for word in ("--set", text)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    four = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert four.returncode == 0, four.stderr
    assert "settings.micro_batch was 8, now it is 2" in four.stderr
    assert settings(out)["micro_batch"] == 2
    assert losses(out) == pytest.approx(losses(whole), abs=1e-5)
