"""Trackers: what they are sent, once; and that a training is the same with and without them."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_trainings import rows_of
from training import group_work as work

from inheritune.data.tokens import TokenDirectory
from inheritune.recipe.schema import Recipe
from inheritune.run_directory import Run
from inheritune.steps.job import Job
from inheritune.steps.training import open_trackers
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.training_task import TrainingTask
from inheritune.system.processes import Processes
from inheritune.system.progress import silent
from inheritune.system.signals import StopFlag
from inheritune.training import trackers
from inheritune.training.tracker_adapters import ADAPTERS, Row, TrackedTraining, Tracker
from inheritune.training.trackers import Trackers


class Recorder:
    """A tracker that remembers; the first calls of `log` may raise."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.rows: list[Row] = []
        self.training: TrackedTraining | None = None
        self.finished = False

    def start(self, training: TrackedTraining) -> str:
        self.training = training
        return training.run_id or "run-1"

    def log(self, rows: Sequence[Row]) -> None:
        self.fails -= 1
        if self.fails >= 0:
            raise ConnectionError("down")
        self.rows += rows

    def finish(self) -> None:
        self.finished = True


def train_with(
    make: Callable[[], Tracker], folder: Path, tokens: TokenDirectory, **more: Any
) -> list[str]:
    messages: list[str] = []
    with Trackers({"one": make}, "tiny: inherit, 2 layers", folder, messages.append) as shown:
        work.run_training(folder, tokens, on_row=shown.send, **more)
    return messages


def test_a_tracker_is_sent_the_rows_of_the_file(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    recorder = Recorder()
    assert train_with(lambda: recorder, tmp_path, tiny_tokens) == []
    rows = rows_of(tmp_path)
    assert [row.step for row in recorder.rows] == [row["step"] for row in rows]
    for sent, row in zip(recorder.rows, rows, strict=True):
        assert sent.tokens == row["tokens"]
        assert all(sent.values[name] == row[name] for name in sent.values)
    steps = {"loss", "grad_norm", "learning_rate", "tokens_per_s", "tokens"}
    assert {frozenset(row.values) for row in recorder.rows} == {
        frozenset(steps),
        frozenset({"val_loss"}),
    }
    assert recorder.finished


def test_nonfinite_values_are_not_sent_to_a_tracker(tmp_path: Path) -> None:
    recorder = Recorder()
    with Trackers({"one": lambda: recorder}, "x", tmp_path, pytest.fail) as shown:
        shown.send({"step": 1, "tokens": 128, "loss": None, "grad_norm": 1.0, "nonfinite": "nan"})
    assert recorder.rows[0].values == {"grad_norm": 1.0, "tokens": 128.0}


def test_rows_wait_while_a_tracker_is_down_and_are_sent_once(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_FIRST_PAUSE_S", 0.001)
    recorder = Recorder(fails=3)
    messages = train_with(lambda: recorder, tmp_path, tiny_tokens)
    assert messages == [
        "tracker one: ConnectionError: down; the training is unharmed, and metrics.jsonl has "
        "every row"
    ]
    assert [row.step for row in recorder.rows] == [row["step"] for row in rows_of(tmp_path)]


def test_failure_of_one_tracker_does_not_touch_another(tmp_path: Path) -> None:
    down, sound, messages = Recorder(fails=99), Recorder(), []
    makers = {"down": lambda: down, "sound": lambda: sound}
    with Trackers(makers, "x", tmp_path, messages.append) as shown:
        shown.send({"step": 1, "tokens": 128, "loss": 1.0})
    assert (down.rows, len(sound.rows), len(messages)) == ([], 1, 1)


def test_keys_in_a_trackers_error_are_masked(tmp_path: Path) -> None:
    secrets = ["user:pass", "write_token=abc", "hf_abcdefgh", "0123456789abcdef" * 3]

    class Telling(Recorder):
        def start(self, training: TrackedTraining) -> str:
            raise OSError(
                f"no answer of https://{secrets[0]}@example.org/x?{secrets[1]} "
                f"with {secrets[2]} or {secrets[3]}\nsecond line"
            )

    messages: list[str] = []
    with Trackers({"one": Telling}, "x", tmp_path, messages.append) as shown:
        shown.send({"step": 1, "tokens": 128, "loss": 1.0})
    assert messages[0].startswith(
        "tracker one: OSError: no answer of https://***@example.org/x?*** with *** or ***; "
    )


def test_a_resumed_training_goes_on_in_the_same_run(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    first, second = Recorder(), Recorder()
    train_with(lambda: first, tmp_path, tiny_tokens, stop_after=7)
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"one": "run-1"}
    train_with(lambda: second, tmp_path, tiny_tokens)
    named = TrackedTraining("tiny: inherit, 2 layers", tmp_path)
    assert first.training == named
    assert second.training == replace(named, run_id="run-1", first_step=8)
    assert [row.step for row in second.rows] == [
        row["step"] for row in rows_of(tmp_path)[len(first.rows) + 1 :]
    ]


def test_training_killed_before_its_first_checkpoint_reopens_its_run(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    recorder = Recorder()
    (tmp_path / "trackers.json").write_text('{"one": "run-0"}')
    train_with(lambda: recorder, tmp_path, tiny_tokens)
    assert recorder.training is not None
    assert (recorder.training.run_id, recorder.training.first_step) == ("run-0", 0)


@pytest.mark.parametrize("content", ["", "[]", '{"one": 1}', "{"])
def test_broken_trackers_json_begins_a_new_run(content: str, tmp_path: Path) -> None:
    recorder = Recorder()
    (tmp_path / "trackers.json").write_text(content)
    with Trackers({"one": lambda: recorder}, "x", tmp_path, pytest.fail) as shown:
        shown.send({"step": 1, "tokens": 128, "loss": 1.0})
    assert recorder.training is not None
    assert recorder.training.run_id is None
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"one": "run-1"}


def test_only_the_first_process_has_trackers(tmp_path: Path) -> None:
    second = Processes()
    second.rank, second.size = 1, 2
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "reference": {"model": "x"},
            "data": {"source": "x"},
            "train": {"tokens": 1},
            "report": {"trackers": ["tensorboard"]},
        }
    )
    job = Job(recipe, Run(tmp_path), StopFlag(), silent, second)
    before = threading.active_count()
    spec = TrainingSpec("inherit", "inherit", 2, 1)
    with open_trackers(TrainingTask(job, spec, tmp_path, tokens=None, inputs={})) as shown:
        shown.send({"step": 1, "tokens": 128, "loss": 1.0})
        assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


# -- the real ones, each without a network


def test_tensorboard_shows_every_step_once_after_a_crash(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make = ADAPTERS["tensorboard"]
    train_with(make, tmp_path, tiny_tokens, stop_after=3)
    train_with(make, tmp_path, tiny_tokens, stop_after=7)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000007")  # killed: steps 4 to 7 are repeated
    assert train_with(make, tmp_path, tiny_tokens) == []
    assert not (tmp_path / "trackers.json").exists()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "val_loss", "grad_norm", "learning_rate", "tokens"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [
            (row["step"], pytest.approx(row[name], rel=1e-6))
            for row in rows_of(tmp_path)
            if name in row and (name == "val_loss" or "val_loss" not in row)
            if "event" not in row
        ]
        assert shown == expected, name


def mlflow_losses(folder: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute("select step, value from metrics where key = 'loss'").fetchall()


def trackio_losses(folder: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "trackio" / "inheritune.db") as store:
        rows = store.execute("select step, metrics from metrics order by step").fetchall()
    return [(step, json.loads(v)["loss"]) for step, v in rows if "loss" in json.loads(v)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_a_tracker_stores_every_step_once_after_a_crash(
    name: str,
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(name)
    monkeypatch.setattr(trackers, "_DRAIN_S", 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "trackio":  # it reads TRACKIO_DIR when it is imported
        for module in ("trackio.utils", "trackio.sqlite_storage"):
            monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    make = ADAPTERS[name]
    capfd.readouterr()
    train_with(make, tmp_path, tiny_tokens, stop_after=3)
    run_ids = json.loads((tmp_path / "trackers.json").read_text())
    train_with(make, tmp_path, tiny_tokens, stop_after=7)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000007")
    assert train_with(make, tmp_path, tiny_tokens) == []
    assert json.loads((tmp_path / "trackers.json").read_text()) == run_ids
    assert capfd.readouterr().out == ""
    if name == "wandb":  # its files are W&B's own; the names hold the id of the run
        folders = list((tmp_path / "wandb").glob("offline-run-*"))
        assert len(folders) == 3
        assert all(run_ids["one"] in folder.name for folder in folders)
        return
    losses = mlflow_losses(tmp_path) if name == "mlflow" else trackio_losses(tmp_path)
    assert losses == [(row["step"], row["loss"]) for row in rows_of(tmp_path) if "loss" in row]
