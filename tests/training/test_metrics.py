import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from inheritune.training.metrics import SPIKE_WINDOW, Metrics, record_end


def row(step: int, loss: float | None) -> dict[str, object]:
    return {"step": step, "loss": loss}


def marked(path: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["step"]: row["spike"] for row in rows if "spike" in row}


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """As many losses as are looked back at: mean 3, standard deviation about 0.1."""
    draw, path = random.Random(0), tmp_path / "metrics.jsonl"
    metrics = Metrics.open(path, 0)
    for step in range(1, SPIKE_WINDOW + 1):
        metrics.append(row(step, draw.gauss(3, 0.1)))
    return path


def test_losses_within_the_noise_are_not_marked_as_spikes(noisy: Path) -> None:
    metrics = Metrics.open(noisy, SPIKE_WINDOW)
    metrics.append(row(SPIKE_WINDOW + 1, 3.4))
    metrics.append(row(SPIKE_WINDOW + 2, 1.0))  # far below is no spike
    metrics.append(row(SPIKE_WINDOW + 3, None))
    assert marked(noisy) == {}


def test_a_spike_is_marked_by_its_sigmas_also_after_a_resume(noisy: Path) -> None:
    metrics = Metrics.open(noisy, SPIKE_WINDOW)
    metrics.append(row(SPIKE_WINDOW + 1, 4.0))
    assert marked(noisy) == {SPIKE_WINDOW + 1: pytest.approx(10, abs=1.5)}


def test_spikes_are_not_marked_before_the_window_is_full(tmp_path: Path) -> None:
    metrics = Metrics.open(tmp_path / "metrics.jsonl", 0)
    for step in range(1, SPIKE_WINDOW):
        metrics.append(row(step, 3 + step % 2 / 100))
    metrics.append(row(SPIKE_WINDOW, 100.0))
    assert marked(tmp_path / "metrics.jsonl") == {}


def test_the_best_step_is_that_of_the_lowest_val_loss(tmp_path: Path) -> None:
    metrics = Metrics.open(tmp_path / "metrics.jsonl", 0)
    assert metrics.best_step is None
    for step, loss in ((0, 5.0), (10, 3.0), (20, None), (30, 4.0)):
        metrics.append({"step": step, "val_loss": loss})
    assert metrics.best_step == 10


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A training of 20 steps, validated before the first and after the tenth."""
    metrics = Metrics.open(tmp_path / "metrics.jsonl", 0)
    for step, measured in ((0, {"val_loss": 5.0}), (10, {"val_loss": 3.0}), (20, {"loss": 2.5})):
        place = {"step": step, "tokens": 64 * step, "epoch": step / 8, "elapsed_s": step / 4}
        metrics.append(place | measured)
    return tmp_path / "metrics.jsonl"


def test_final_val_loss_is_the_last_row_and_is_passed_to_on_row(
    ended: Path,
) -> None:
    shown: list[Mapping[str, object]] = []
    assert record_end(ended, 2.75, shown.append) == 3
    end = {"step": 20, "tokens": 1280, "epoch": 2.5, "elapsed_s": 5.0, "val_loss": 2.75}
    assert json.loads(ended.read_text().splitlines()[-1]) == end
    assert shown == [end]


def test_final_val_loss_is_written_once(ended: Path) -> None:
    record_end(ended, 2.75)
    before = ended.read_bytes()
    # A kill fell between the row and the result: FLOPs must not depend on it.
    assert record_end(ended, 2.75) == 3
    assert ended.read_bytes() == before
