"""Inject lost rows: a checkpoint is whole only together with the rows that were written before it.

A power cut keeps what was synced, so rows are synced before the checkpoint that names them.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tiny_recipe
from training import group_work as work
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import CheckpointError, Interrupted
from inheritune.run.execute import execute
from inheritune.system.progress import Progress
from inheritune.training.checkpoint_files import newest_first

run_training = partial(work.run_training, micro_batch=8)  # in one piece: fewer passes

LOSSES: dict[str, Callable[[bytes], bytes]] = {
    "the tail": lambda rows: rows[: len(rows) * 2 // 3],
    "a validation in the middle": lambda rows: b"".join(
        row for row in rows.splitlines(keepends=True) if b'"val_loss"' not in row
    ),
    "a changed digit": lambda rows: rows.replace(b'"loss": ', b'"loss": 1', 1),
}


def stopped_at(folder: Path, tokens: TokenDirectory, *steps: int) -> Path:
    """A training that was stopped after these steps; returns its rows."""
    for step in steps:
        run_training(folder, tokens, stop_after=step)
    return folder / "metrics.jsonl"


def steps_in(metrics: Path) -> list[int]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["step"] for row in rows if "loss" in row]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.fault("D31")
def test_a_checkpoint_without_its_rows_is_passed_over_and_trained_again(
    loss: str, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    metrics = stopped_at(tmp_path, tiny_tokens, 3, 10)
    early = metrics.read_bytes()[: json.loads(_trainer(tmp_path, 3))["metrics"]["bytes"]]
    metrics.write_bytes(early + LOSSES[loss](metrics.read_bytes()[len(early) :]))
    _, trained, _ = run_training(tmp_path, tiny_tokens)
    assert trained is not None
    assert "passed over step-00000010: metrics.jsonl" in " ".join(trained.notes)
    assert steps_in(metrics) == list(range(1, 21))
    whole = stopped_at(tmp_path / "unbroken", tiny_tokens, 20)
    assert set(_val_losses(metrics)) == set(_val_losses(whole))


@pytest.mark.fault("D31")
def test_without_the_rows_of_any_checkpoint_it_says_so_and_goes_on_only_when_told_from_which(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    metrics = stopped_at(tmp_path, tiny_tokens, 3, 10)
    metrics.unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl") as error:
        run_training(tmp_path, tiny_tokens)
    newest = newest_first(tmp_path / "checkpoints")[0]
    assert f"--from {newest}" in str(error.value.hint) and error.value.exit_code == 3
    _, trained, _ = run_training(tmp_path, tiny_tokens, checkpoint=newest)
    assert trained is not None and "metrics.jsonl" in " ".join(trained.notes)
    assert steps_in(metrics) == list(range(11, 21))


@pytest.mark.fault("D31")
def test_a_checkpoint_of_version_0_1_0_names_no_rows_and_is_continued(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("inheritune.training.metrics.Metrics.synced", lambda self: None)
        metrics = stopped_at(tmp_path, tiny_tokens, 10)
    assert "metrics" not in json.loads(_trainer(tmp_path, 10))
    metrics.unlink()
    run_training(tmp_path, tiny_tokens)
    assert steps_in(metrics) == list(range(11, 21))


@pytest.mark.fault("D31")
def test_rows_are_on_the_disk_before_the_checkpoint_that_names_them(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was synced survives: at the rename of a checkpoint, its rows must be among it."""
    synced_bytes, survived = [0], []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        if (tmp_path / "metrics.jsonl").exists():
            metrics, file = (tmp_path / "metrics.jsonl").stat(), os.fstat(descriptor)
            if (metrics.st_dev, metrics.st_ino) == (file.st_dev, file.st_ino):
                synced_bytes[0] = file.st_size

    def note_rename(self: Path, target: Path) -> Path:
        if Path(target).name.startswith("step-"):
            named = json.loads((self / "trainer.json").read_text())["metrics"]["bytes"]
            survived.append(synced_bytes[0] >= named > 0)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    run_training(tmp_path, tiny_tokens, save_minutes=1e-9)
    assert len(survived) >= 20 and all(survived)


@pytest.fixture(scope="module")
def stopped(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was stopped after a step; to be copied."""
    root = tmp_path_factory.mktemp("stopped") / "run"
    recipe = tiny_recipe.as_file(tiny_recipe.recipe_of(tiny_reference, tiny_text))

    def stop(progress: Progress) -> None:
        if progress.unit == "tokens" and progress.task.startswith("inherit") and progress.done:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(recipe, root, stop)
    return root


@pytest.mark.parametrize("loss", [*LOSSES, "all"])
@pytest.mark.fault("D31")
def test_verify_tells_of_lost_rows(loss: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "run")]).exit_code == 0
    (metrics,) = (tmp_path / "run").glob("variants/*/*/metrics.jsonl")
    metrics.write_bytes(LOSSES.get(loss, lambda rows: b"")(metrics.read_bytes()))
    if loss == "all":
        metrics.unlink()
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 3 and "metrics.jsonl" in done.stdout, done.output


def _trainer(folder: Path, step: int) -> str:
    return (folder / "checkpoints" / f"step-{step:08d}" / "trainer.json").read_text()


def _val_losses(metrics: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
