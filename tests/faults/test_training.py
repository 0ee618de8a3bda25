"""Inject faults into training, saving, resuming and growing.

Processes that fail, growth that keeps weights and trackers have more tests in
tests/training/test_process_group.py, tests/steps/test_kept_layers.py and
tests/training/test_trackers.py.
"""

import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_recipe
import torch
from safetensors.torch import load_file
from small_trainings import assert_same
from training import group_work as work

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import (
    CheckpointError,
    DivergedError,
    InherituneError,
    Interrupted,
    MachineError,
    RecipeError,
    SourceError,
)
from inheritune.evaluation.val_loss import measure_val_loss
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.run.execute import execute
from inheritune.run.one_step import train_only
from inheritune.run_directory import Run
from inheritune.system.files import sweep_directory
from inheritune.system.progress import Progress
from inheritune.system.reading import directories_below
from inheritune.system.signals import catch_signals, end_process_at_second_signal
from inheritune.training import checkpoint as state
from inheritune.training import checkpoint_files, loop, trackers, training_inputs
from inheritune.training import sharded_safetensors as saved_tensors
from inheritune.training.hardware import choose_settings
from inheritune.training.process_group import join
from inheritune.training.tracker_adapters import ADAPTERS, Row, TrackedTraining, Tracker
from inheritune.training.trackers import Trackers

SAVE_ALWAYS = {"save_minutes": 1e-9}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # forked children compute, too
    yield
    torch.set_num_threads(before)


def in_child(do: Callable[[], object]) -> int:
    """Fork; returns the child's process id. It ends with 0, or with the exit code of an error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        do()
        code = 0
    except InherituneError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# In one piece: a quarter of the passes that `work` needs for its processes.
run_training = partial(work.run_training, micro_batch=8)


def end_of(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint_files.newest_first(folder / "checkpoints")[0]
    found = {f"w.{k}": v for k, v in load_file(newest / "model.safetensors").items()}
    return found | load_file(newest / "optimizer.safetensors")


def litter(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".tmp" in p.name]


def swept(folder: Path) -> None:
    """Remove what killed processes left, as every start of a run does."""
    for directory in directories_below(folder):
        sweep_directory(directory)


@pytest.fixture(scope="module")
def unbroken(tiny_tokens: TokenDirectory, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("unbroken")
    run_training(folder, tiny_tokens, **SAVE_ALWAYS)
    return end_of(folder)


Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tiny_tokens: TokenDirectory, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A function that puts a training into a folder, stopped at steps, with a checkpoint of each.

    It returns the folder of the checkpoints.
    """
    made: dict[tuple[int, ...], Path] = {}

    def copy(folder: Path, *steps: int) -> Path:
        if steps not in made:
            made[steps] = tmp_path_factory.mktemp("saved")
            for step in steps:
                run_training(made[steps], tiny_tokens, stop_after=step)
        shutil.copytree(made[steps], folder, dirs_exist_ok=True)
        return folder / "checkpoints"

    return copy


def recipe_of(model: Path, text: Path, **sections: dict[str, Any]) -> RecipeFile:
    """One round of ten steps, or as the sections say."""
    plain = {"grow": {"add": 0}, "variants": {"inherit": {"start": "inherit"}}}
    fields = tiny_recipe.fields_of(model, text, **(plain | sections))
    return tiny_recipe.as_file(Recipe.model_validate(fields))


def interrupted_run(recipe: RecipeFile, root: Path, at_tokens: int = 640) -> None:
    def on_progress(progress: Progress) -> None:
        if progress.task == "inherit, 2 layers" and progress.done >= at_tokens:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(recipe, root, on_progress)


# -- killed


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.fault("D1")
def test_killed_at_random_it_ends_with_the_same_bits(
    times: int, tiny_tokens: TokenDirectory, tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    draw, killed = random.Random(times), 0
    folder = tmp_path / "0"
    for _ in range(400):
        child = in_child(partial(run_training, folder, tiny_tokens, **SAVE_ALWAYS))
        time.sleep(draw.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        killed += code_of(child) == -signal.SIGKILL
        if draw.random() < 0.2:
            swept(folder)
            run_training(folder, tiny_tokens, **SAVE_ALWAYS)
            assert_same(end_of(folder), unbroken)
            assert not litter(folder)
            folder = tmp_path / str(killed)
        if killed >= times:
            break
    assert killed >= times


@pytest.mark.fault("D2")
def test_a_kill_at_every_write_sync_and_rename_of_a_save(
    tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    begun = tmp_path / "begun"
    saved(begun, 5)
    for k in range(1, 200):
        folder = tmp_path / str(k)
        shutil.copytree(begun, folder)

        def die_at(k: int = k, folder: Path = folder) -> None:
            left = k

            def counted(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **more: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **more)

                return call

            os.fsync = counted(os.fsync)
            Path.rename = counted(Path.rename)
            Path.replace = counted(Path.replace)
            saved_tensors.save_file = counted(saved_tensors.save_file)
            run_training(folder, tiny_tokens, stop_after=6)

        ended = code_of(in_child(die_at))
        swept(folder)
        assert not litter(folder)
        run_training(folder, tiny_tokens)
        assert_same(end_of(folder), unbroken)
        assert not litter(folder)
        if ended == 0:
            break
    assert 8 < k < 199  # every point was met, and then there were no more


# -- signals


TWO_ROUNDS = {"add": 1, "max_rounds": 2}


@pytest.fixture(scope="module")
def grown(tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The val_loss of a run of two rounds that nothing happens to."""
    recipe = recipe_of(tiny_reference, tiny_text, grow=TWO_ROUNDS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
        return execute(recipe, tmp_path_factory.mktemp("grown") / "run").summary["val_loss"]


@pytest.mark.parametrize(
    ("task", "unit"),
    [
        ("documents", ""),
        ("benchmark", "windows"),
        ("inherit, 2 layers", "tokens"),
        ("inherit, 2 layers, val_loss", "windows"),
        ("inherit, 3 layers", "tokens"),
    ],
)
@pytest.mark.fault("D3")
def test_sigterm_in_every_part_of_a_run_ends_with_75_and_is_continued(
    task: str, unit: str, tiny_reference: Path, tiny_text: Path, tmp_path: Path, grown: float
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, grow=TWO_ROUNDS)
    asked, heard = False, []

    def on_progress(progress: Progress) -> None:
        nonlocal asked
        heard.append((progress.task, progress.unit))
        first = not unit or (progress.task, progress.unit) == (task, unit)
        if first and not asked:
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
        with pytest.raises(Interrupted) as error:
            execute(recipe, tmp_path / "run", on_progress)
        assert asked, sorted(set(heard))
        assert error.value.exit_code == 75
        final = execute(recipe, tmp_path / "run").summary
    assert final["val_loss"] == grown


@pytest.mark.fault("D3")
def test_sigterm_while_saving_leaves_the_checkpoint(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = state.write_pieces

    def write_and_ask(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(*arguments)

    monkeypatch.setattr(state, "write_pieces", write_and_ask)
    child = in_child(lambda: run_training(tmp_path, tiny_tokens, stop_after=5))
    assert code_of(child) == -signal.SIGTERM  # nobody catches it there: killed
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.fault("D4")
def test_a_second_signal_ends_at_once_and_corrupts_nothing(
    number: int,
    code: int,
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    write, count = state.write_pieces, 0

    def write_and_be_asked(*arguments: Any) -> None:
        nonlocal count
        count += 1
        for _ in range(2 * (count == 6)):
            os.kill(os.getpid(), number)
        write(*arguments)

    def work_and_be_asked() -> None:
        state.write_pieces = write_and_be_asked
        end_process_at_second_signal()
        with catch_signals():
            run_training(tmp_path, tiny_tokens, **SAVE_ALWAYS)

    assert code_of(in_child(work_and_be_asked)) == code
    run_training(tmp_path, tiny_tokens, **SAVE_ALWAYS)
    assert_same(end_of(tmp_path), unbroken)


# -- disks and files


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.fault("D5")
def test_a_disk_that_refuses_ends_with_4_and_the_last_checkpoint_is_whole(
    number: int,
    tiny_tokens: TokenDirectory,
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints = saved(tmp_path, 5)

    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(state, "write_pieces", refuse)
        with pytest.raises(MachineError) as error:
            run_training(tmp_path, tiny_tokens)
    assert error.value.exit_code == 4
    assert [p.name for p in checkpoints.glob("*step*")] == ["step-00000005"]
    checkpoint_files.verify_checkpoint(checkpoints / "step-00000005")


@pytest.mark.fault("D5")
def test_a_disk_without_room_for_the_checkpoints_ends_with_4_before_the_first_step(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(MachineError, match="1,000 left"):
            execute(recipe, tmp_path)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert execute(recipe, tmp_path).summary


@pytest.mark.fault("D5")
def test_a_file_size_limit_ends_with_4(
    tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path, 5)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        run_training(tmp_path, tiny_tokens)

    assert code_of(in_child(limited)) == 4
    assert [p.name for p in checkpoints.glob("*step*")] == ["step-00000005"]
    checkpoint_files.verify_checkpoint(checkpoints / "step-00000005")


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "manifest.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return damage


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": lambda c: (c / "model.safetensors").unlink(),
    "truncated": lambda c: os.truncate(c / "optimizer.safetensors", 100),
    "extra": lambda c: shutil.copy(c / "model.safetensors", c / "more.safetensors"),
    "empty manifest": lambda c: (c / "manifest.json").write_text(""),
    "elsewhere": _manifest(lambda m: m["files"].update({"../x": m["files"]["trainer.json"]})),
    "future": _manifest(lambda m: m.update(format=99)),
    "more writers": _manifest(lambda m: m.update(writers=2)),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.fault("D6")
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    name: str,
    tiny_tokens: TokenDirectory,
    saved: Saved,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
) -> None:
    checkpoints = saved(tmp_path, 3, 5)
    DAMAGES[name](checkpoints / "step-00000005")
    _, trained, _ = run_training(tmp_path, tiny_tokens)
    assert len(trained.notes) == 1
    assert "passed over step-00000005" in trained.notes[0]
    assert_same(end_of(tmp_path), unbroken)


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.fault("D6")
def test_a_damaged_checkpoint_that_is_named_ends_with_3_and_nothing_in_its_place(
    name: str, tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path, 3, 5)
    DAMAGES[name](checkpoints / "step-00000003")
    before = sorted(checkpoints.rglob("*"))
    with pytest.raises(CheckpointError, match=r"cannot go on from .*step-00000003: .") as error:
        run_training(tmp_path, tiny_tokens, checkpoint=checkpoints / "step-00000003")
    assert error.value.exit_code == 3
    assert sorted(checkpoints.rglob("*")) == before


LIES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda latest: latest.unlink(),
    "dangling": lambda latest: latest.write_text("step-00000099"),
    "older": lambda latest: latest.write_text("step-00000003"),
    "outside": lambda latest: latest.write_text("../../etc"),
    "garbage": lambda latest: latest.write_bytes(b"\0\xff" * 1000),
    "link": lambda latest: latest.unlink() or latest.symlink_to(latest.parents[1] / "mine"),
    "directory": lambda latest: latest.unlink() or latest.mkdir(),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.fault("D7")
def test_a_hint_at_the_latest_is_never_believed_and_is_written_anew(
    name: str,
    tiny_tokens: TokenDirectory,
    saved: Saved,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
) -> None:
    (tmp_path / "mine").write_text("of somebody else")
    checkpoints = saved(tmp_path, 3, 5)
    latest = checkpoints / "latest"
    assert latest.read_text() == "step-00000005\n"
    LIES[name](latest)
    run_training(tmp_path, tiny_tokens, stop_after=7)
    if name != "directory":  # which a hint is not worth deleting
        assert not latest.is_symlink()
        assert latest.read_text() == "step-00000007\n"
    run_training(tmp_path, tiny_tokens)
    assert_same(end_of(tmp_path), unbroken)
    assert (tmp_path / "mine").read_text() == "of somebody else"
    assert not litter(tmp_path)


@pytest.mark.fault("D7")
def test_the_hint_names_what_was_loaded_when_the_newest_is_broken(
    tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path, 3, 5)
    DAMAGES["truncated"](checkpoints / "step-00000005")
    seen = []

    def look(progress: Progress) -> None:
        seen.append((checkpoints / "latest").read_text())

    run_training(tmp_path, tiny_tokens, heard=look)
    assert seen[0] == "step-00000003\n"
    assert (checkpoints / "latest").read_text() == "step-00000020\n"


@pytest.mark.fault("D8")
def test_when_all_are_bad_it_never_starts_over_silently(
    tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path, 3, 5)
    for checkpoint in checkpoints.glob("step-*"):
        (checkpoint / "trainer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="To train from the start, remove") as error:
        run_training(tmp_path, tiny_tokens)
    assert error.value.exit_code == 3


@pytest.mark.fault("D9")
def test_a_planted_pickle_is_ignored_and_said(
    tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    checkpoint = saved(tmp_path, 5) / "step-00000005"
    (checkpoint / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")
    _, trained, _ = run_training(tmp_path, tiny_tokens)
    assert trained.notes == ("ignored optimizer.pt in step-00000005: nothing is unpickled",)
    assert not Path("PWNED").exists()
    assert_same(end_of(tmp_path), unbroken)


# -- resumed with something else


def files_but_log(root: Path) -> dict[Path, bytes]:
    kept = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return {path: kept[path] for path in kept if path.name != "log.txt"}


@pytest.fixture(scope="module")
def halfway(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was interrupted; to be copied."""
    root = tmp_path_factory.mktemp("halfway") / "run"
    interrupted_run(recipe_of(tiny_reference, tiny_text), root)
    return root


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"learning_rate": 2e-3}),
        ("train", {"seq_len": 32, "micro_batch": 4}),
        ("train", {"batch_tokens": 256}),
        ("train", {"seed": 1}),
        ("train", {"schedule": "wsd"}),
        ("train", {"precision": "bf16"}),
        ("data", {"val_fraction": 0.3}),
        ("data", {"tokens": 1500}),
        ("data", {"source": "elsewhere.txt"}),
    ],
)
@pytest.mark.fault("D10")
def test_a_changed_recipe_is_refused_with_2_and_the_difference(
    section: str,
    change: dict[str, Any],
    halfway: Path,
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(halfway, tmp_path / "run")
    before = files_but_log(tmp_path / "run")
    changed = recipe_of(tiny_reference, tiny_text, **{section: change})
    with pytest.raises(RecipeError) as error:
        execute(changed, tmp_path / "run")
    assert files_but_log(tmp_path / "run") == before  # so that it goes on: the next test
    assert error.value.exit_code == 2
    assert str(next(iter(change.values()))) in error.value.message


@pytest.mark.fault("D10")
def test_a_refused_start_leaves_the_files_of_the_run_as_they_were_and_it_goes_on(
    halfway: Path, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(halfway, tmp_path / "run"))
    recipe = recipe_of(tiny_reference, tiny_text)
    before = files_but_log(root)
    changed = recipe_of(tiny_reference, tiny_text, train={"learning_rate": 2e-3})
    with pytest.raises(RecipeError):
        execute(replace(changed, text="# another one\n"), root)
    assert files_but_log(root) == before
    assert Run(root).read()["status"] == "interrupted"
    execute(recipe, root)


@pytest.mark.fault("D10")
def test_a_changed_key_can_be_allowed_and_is_recorded(
    halfway: Path, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    shutil.copytree(halfway, tmp_path / "run")
    changed = recipe_of(tiny_reference, tiny_text, train={"learning_rate": 2e-3})
    execute(changed, tmp_path / "run", allowed=["train.learning_rate"])
    record = Run(tmp_path / "run").read()
    assert record["allowed_changes"] == ["train.learning_rate"]
    assert "train.learning_rate was 0.001, now it is 0.002" in record["rounds"][0]["notes"][0]


@pytest.mark.fault("D10")
def test_a_stopped_training_goes_on_to_another_number_of_tokens_only_where_that_is_allowed(
    halfway: Path, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(halfway, tmp_path / "run"))
    shorter = recipe_of(tiny_reference, tiny_text, train={"tokens": 1024})
    with pytest.raises(RecipeError, match="variant_tokens = 1280; now it is 1024"):
        train_only(shorter, root)
    heard: list[str] = []
    trained = train_only(
        shorter, root, on_progress=lambda p: heard.append(p.message), allowed=["train.tokens"]
    )
    assert trained is not None
    assert trained.training.tokens == 1024
    assert "continued from step 5 of 8" in heard
    assert Run(root).read()["allowed_changes"] == ["train.tokens", "variant_tokens"]


@pytest.mark.parametrize("key", ["train.batch_tokens", "train.seq_len", "data.source", "x"])
@pytest.mark.fault("D10")
def test_keys_that_give_steps_their_meaning_can_never_be_allowed(
    key: str, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="--allow-change"):
        execute(recipe_of(tiny_reference, tiny_text), tmp_path / "run", allowed=[key])


@pytest.mark.fault("D11")
def test_other_versions_are_said_and_recorded(
    halfway: Path,
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text)
    shutil.copytree(halfway, tmp_path / "run")
    monkeypatch.setattr(training_inputs, "version", lambda name: "9")
    execute(recipe, tmp_path / "run")
    notes = Run(tmp_path / "run").read()["rounds"][0]["notes"]
    assert any(note.endswith("now it is 9") and note.startswith("torch was") for note in notes)


@pytest.mark.parametrize("stop_after", [5, 10, 19, 20])
@pytest.mark.fault("D12")
def test_resumed_at_a_boundary_or_after_the_end_it_is_the_same(
    stop_after: int,
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
) -> None:
    run_training(tmp_path, tiny_tokens, stop_after=stop_after)  # 5, 10: also evaluated
    for _ in range(2):
        run_training(tmp_path, tiny_tokens)
        assert_same(end_of(tmp_path), unbroken)
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 5, 10, 15]


@pytest.mark.fault("D13")
def test_a_second_trainer_of_one_run_is_refused_with_the_number_of_the_first(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe, root = recipe_of(tiny_reference, tiny_text), tmp_path / "run"
    ready, hold = os.pipe()

    def first() -> None:
        with Run.create(root).lock():
            os.write(hold, b"x")
            time.sleep(60)

    child = in_child(first)
    os.read(ready, 1)
    with pytest.raises(MachineError, match=f"process {child} on") as error:
        execute(recipe, root)
    assert error.value.exit_code == 4
    os.kill(child, signal.SIGKILL)
    code_of(child)
    execute(recipe, root)  # a lock that a killed process held is no lock


# -- values


@pytest.mark.fault("D14")
def test_an_absurd_rate_or_a_broken_weight_ends_with_5(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    absurd = recipe_of(tiny_reference, tiny_text, train={"learning_rate": 1e30})
    with pytest.raises(DivergedError) as error:
        execute(absurd, tmp_path / "run")
    assert error.value.exit_code == 5
    assert Run(tmp_path / "run").read()["exit_code"] == 5


@pytest.mark.fault("D14")
def test_a_skipped_step_poisons_neither_weights_nor_moments(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = loop.mean_and_clip, 0

    def once(params: Any, tokens: float, norm: float) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            params[0].grad[0] = math.nan
        return clip(params, tokens, norm)

    monkeypatch.setattr(loop, "mean_and_clip", once)
    _, trained, _ = run_training(tmp_path, tiny_tokens, nonfinite="skip")
    assert trained.position.skipped == 1
    assert all(tensor.isfinite().all() for tensor in end_of(tmp_path).values())
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    bad = next(row for row in rows if row.get("nonfinite"))
    assert (bad["step"], bad["grad_norm"], bad["samples"]) == (4, None, [24, 32])


@pytest.mark.fault("D15")
def test_a_spike_is_marked_and_the_training_goes_on(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.training.metrics.SPIKE_WINDOW", 8)
    forward_backward = loop.forward_backward

    def garbage(setup: Any, step: int, *rest: Any, **options: Any) -> Any:
        sums = forward_backward(setup, step, *rest, **options)
        return type(sums)(**(vars(sums) | {"loss": sums.loss * 50})) if step == 15 else sums

    monkeypatch.setattr(loop, "forward_backward", garbage)
    _, trained, _ = run_training(tmp_path, tiny_tokens)
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "spike" in row] == [16]
    assert trained.position.step == 20


@pytest.mark.parametrize("micro_batch", [1, 4, 8])
@pytest.mark.fault("D16")
def test_a_batch_cut_in_any_way_gives_the_same_losses(
    micro_batch: int, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    found = []
    for size in (micro_batch, 2):
        run_training(tmp_path / str(size), tiny_tokens, micro_batch=size)
        lines = (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()
        found.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.fault("D17")
def test_a_killed_process_ends_the_run_and_one_process_goes_on(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    recipe = recipe_of(tiny_reference, tiny_text, train={"tokens": 128 * 400, "micro_batch": 4})
    resolved = recipe.recipe.resolved()
    resolved["data"]["allow_repeat"] = True
    path.write_text(json.dumps(resolved))
    command = [sys.executable, "-m", "inheritune", "run", str(path), "--runs", str(tmp_path)]
    folder = tmp_path / "tiny" / "variants" / "inherit" / "2-layers"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--processes", "2", "--set", "train.save_minutes=0.01"],
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as started:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*")):
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.05)
        os.kill(_process_of_rank(1, str(path)), signal.SIGKILL)
        assert started.wait(timeout=90) in {1, 4}
    assert Run(tmp_path / "tiny").read()["exit_code"] in {4, None}
    for checkpoint in folder.glob("checkpoints/step-*"):
        checkpoint_files.verify_checkpoint(checkpoint)
    final = execute(
        RecipeFile(path, "", Recipe.model_validate(resolved), {}), tmp_path / "tiny"
    ).summary
    assert final["tokens"] == 128 * 400
    assert Run(tmp_path / "tiny").read()["rounds"][0]["restarts"] == 1


def _process_of_rank(rank: int, recipe: str) -> int:
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RANK={rank}".encode() in variables and recipe.encode() in line:
            return int(entry.name)
    raise AssertionError("no such process")


# Five sequences a step, which `auto` takes at once: two, half of them, would not divide it.
@pytest.mark.parametrize(
    ("train", "smaller"), [({}, 4), ({"batch_tokens": 80, "micro_batch": "auto"}, 1)]
)
@pytest.mark.fault("D18")
def test_out_of_memory_ends_with_4_and_names_a_smaller_micro_batch(
    train: dict[str, Any],
    smaller: int,
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, train=train)
    interrupted_run(recipe, tmp_path / "run")

    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "forward_backward", full)
        with pytest.raises(MachineError, match=rf"Set train\.micro_batch to {smaller};") as error:
            execute(recipe, tmp_path / "run")
    assert error.value.exit_code == 4
    fitting = recipe_of(tiny_reference, tiny_text, train=train | {"micro_batch": smaller})
    assert execute(fitting, tmp_path / "run").summary["tokens"] == 1280


@pytest.mark.parametrize("visible", ["", pytest.param("99", marks=pytest.mark.slow)])
@pytest.mark.fault("D19")
def test_without_a_gpu_the_processor_is_taken_and_said(visible: str) -> None:
    program = (
        "import json\n"
        "from inheritune.recipe.training import Train\n"
        "from inheritune.training.hardware import choose_settings\n"
        "print(json.dumps(choose_settings(Train.model_validate({'tokens': 1000}), 0).record()))\n"
    )
    found = json.loads(
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": visible},
            capture_output=True,
            check=True,
        ).stdout
    )
    assert (found["device"], found["loss"]) == ("cpu", "chunks")
    assert found["reasons"]["device"] == "torch finds no GPU that it can use"


@pytest.mark.fault("D19")
def test_a_driver_that_is_too_old_is_said_and_the_processor_taken(
    monkeypatch: pytest.MonkeyPatch, tiny_reference: Path, tiny_text: Path
) -> None:
    def too_old() -> bool:  # as torch has it; the command line shows such warnings
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=2
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    with pytest.warns(UserWarning, match="driver on your system is too old"):
        settings = choose_settings(recipe_of(tiny_reference, tiny_text).recipe.train, 0)
    assert settings.device == "cpu"


@pytest.mark.fault("D19")
def test_bf16_on_a_gpu_without_it_ends_with_4(
    monkeypatch: pytest.MonkeyPatch, tiny_reference: Path, tiny_text: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr("inheritune.training.hardware.device_memory", lambda device: 16 * 2**30)
    asked = recipe_of(tiny_reference, tiny_text, train={"precision": "bf16"})
    with pytest.raises(MachineError, match="precision is bf16, which Tesla T4 lacks") as error:
        choose_settings(asked.recipe.train, 0)
    assert error.value.exit_code == 4
    left_open = recipe_of(tiny_reference, tiny_text, train={"precision": "auto"})
    assert choose_settings(left_open.recipe.train, 0).precision == "fp32"


@pytest.mark.fault("D19")
def test_more_processes_than_gpus_or_parts_of_one_end_with_4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of several MIG parts, too
    started = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (started | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match="2 processes were started for 1 GPUs") as error:
        join(60.0)
    assert error.value.exit_code == 4


@pytest.mark.fault("D20")
def test_a_benchmark_met_at_once_is_matched_and_an_unreachable_one_ends_with_6(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow = {"add": 1, "max_rounds": 1}
    easy = recipe_of(tiny_reference, tiny_text, grow=grow | {"tolerance": 100.0})
    result = execute(easy, tmp_path / "easy")
    assert (result.verdict, result.is_missed) == ("matched", False)
    assert result.record.exit_code == 0
    monkeypatch.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
    result = execute(recipe_of(tiny_reference, tiny_text, grow=grow), tmp_path / "hard")
    assert result.is_missed
    assert result.record.exit_code == 6


@pytest.mark.fault("D20")
def test_a_benchmark_that_is_no_number_ends_with_3(
    reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inheritune.evaluation import val_loss

    monkeypatch.setattr(val_loss, "_window_losses", lambda m, s, a, b, t: [math.nan] * (b - a))
    with pytest.raises(SourceError, match=r"val_loss of .* is nan") as error:
        execute(recipe_of(reference, tiny_text), tmp_path / "run")
    assert error.value.exit_code == 3


@pytest.mark.fault("D21")
def test_grown_twice_to_full_depth_it_keeps_every_moment(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
    grow = {"add": 1, "max_rounds": None, "weights": "keep"}
    recipe = recipe_of(tiny_reference, tiny_text, inherit={"layers": 2}, grow=grow)
    result = execute(recipe, tmp_path / "run")
    assert (result.layers, result.summary["rounds"], result.is_missed) == (4, 3, True)
    last = tmp_path / "run" / "variants" / "inherit" / "4-layers"
    found = end_of(last)
    steps = [float(found[f"step.model.layers.{n}.mlp.up_proj.weight"]) for n in range(4)]
    assert steps == [30, 30, 20, 10]


@pytest.mark.fault("D22")
def test_val_loss_twice_is_the_same_to_the_last_bit(tiny_tokens: TokenDirectory) -> None:
    model = work.small_llama()
    one, two = (measure_val_loss(model, tiny_tokens.val, 16, 4).per_window for _ in range(2))
    assert one.tobytes() == two.tobytes()


# -- places


@pytest.mark.parametrize("umask", [0o077, 0o002])
@pytest.mark.fault("D23")
def test_files_follow_the_umask(
    umask: int, tiny_tokens: TokenDirectory, tmp_path: Path, set_umask: Callable[[int], None]
) -> None:
    set_umask(umask)
    run_training(tmp_path, tiny_tokens, stop_after=5)
    for path in (tmp_path / "checkpoints").rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path


@pytest.fixture(scope="module")
def undisturbed(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> float:
    """The val_loss of a run that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    return execute(recipe_of(tiny_reference, tiny_text), root).summary["val_loss"]


@pytest.mark.parametrize("name", ["moved away", "Größe – 模型", "x" * 200])
@pytest.mark.fault("D24", "D25")
def test_a_run_that_was_moved_anywhere_goes_on(
    name: str,
    halfway: Path,
    undisturbed: float,
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(halfway, tmp_path / name / "run")
    (tmp_path / "linked").symlink_to(tmp_path / name)
    final = execute(recipe_of(tiny_reference, tiny_text), tmp_path / "linked" / "run").summary
    assert final["val_loss"] == undisturbed
    record = Run(tmp_path / name / "run").read()
    assert record["rounds"][0]["restarts"] == 1


@pytest.mark.fault("D25")
def test_a_path_with_everything_in_it_works(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    root = tmp_path / "a b" / ("n" * 200) / "ü" / "run"
    root.parent.mkdir(parents=True)
    assert execute(recipe_of(tiny_reference, tiny_text), root).summary["tokens"] == 1280


@pytest.mark.fault("D26")
def test_a_torn_or_spoilt_metrics_file_is_cut_to_the_checkpoint(
    tiny_tokens: TokenDirectory, saved: Saved, tmp_path: Path
) -> None:
    saved(tmp_path, 5)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "loss": 9.0}\n\xff\xfe garbage\n[]\n{"step": 7, "lo')
    run_training(tmp_path, tiny_tokens)
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    assert 9.0 not in [row.get("loss") for row in rows]


# -- trackers


class Broken:
    """A tracker that raises, or waits until `released`."""

    def __init__(self, method: str, released: threading.Event | None = None) -> None:
        self.method, self.released = method, released

    def start(self, training: TrackedTraining) -> None:
        self._fail("start")

    def log(self, rows: Sequence[Row]) -> None:
        self._fail("log")

    def finish(self) -> None:
        self._fail("finish")

    def _fail(self, method: str) -> None:
        if method != self.method:
            return
        if self.released is None:
            raise ConnectionError("the tracker is down")
        self.released.wait(60)


def trained_with(
    make: Callable[[], Tracker], folder: Path, tokens: TokenDirectory, **more: Any
) -> list[str]:
    """Train, and give what was said about the tracker."""
    said: list[str] = []
    with Trackers({"wandb": make}, "test", folder, said.append) as shown:
        run_training(folder, tokens, on_row=shown.send, **more)
    return said


@pytest.mark.fault("D27")
def test_a_tracker_that_is_not_installed_is_one_warning(
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # its import fails, as without the package
    said = trained_with(ADAPTERS["wandb"], tmp_path, tiny_tokens)
    assert len(said) == 1
    assert said[0].startswith("tracker wandb: ModuleNotFoundError: ")
    assert 'pip install "inheritune[trackers]"' in said[0]
    assert_same(end_of(tmp_path), unbroken)


@pytest.mark.parametrize("method", ["start", "log", "finish"])
@pytest.mark.fault("D27")
def test_a_tracker_that_raises_is_one_warning(
    method: str, tiny_tokens: TokenDirectory, tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    said = trained_with(lambda: Broken(method), tmp_path, tiny_tokens)
    assert len(said) == 1
    assert said[0].startswith("tracker wandb: ConnectionError: the tracker is down; the training")
    assert_same(end_of(tmp_path), unbroken)


@pytest.mark.parametrize("method", ["start", "log"])
@pytest.mark.fault("D27")
def test_a_tracker_that_blocks_is_one_warning_and_nobody_waits_for_it(
    method: str,
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "_DRAIN_S", 0.01)
    released = threading.Event()
    said = trained_with(lambda: Broken(method, released), tmp_path, tiny_tokens)
    assert not released.is_set()  # it blocked from the first row on, and all steps were done
    assert len(said) == 1
    assert "rows were not taken within 0.01 s" in said[0]
    released.set()
    assert_same(end_of(tmp_path), unbroken)


@pytest.mark.fault("D27")
def test_rows_that_do_not_fit_are_left_out_with_one_warning(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_DRAIN_S", 0.01)
    monkeypatch.setattr(trackers, "_MAX_WAITING", 5)
    released = threading.Event()
    said = trained_with(lambda: Broken("log", released), tmp_path, tiny_tokens)
    released.set()
    assert len(said) == 1
    assert "does not keep up, and rows are left out there" in said[0]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len([row for row in rows if "learning_rate" in row]) == 20


@pytest.mark.fault("D27")
def test_a_stop_is_not_held_up_by_a_tracker_that_blocks(
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "_DRAIN_S", 0.01)
    released = threading.Event()
    said = trained_with(lambda: Broken("log", released), tmp_path, tiny_tokens, stop_after=7)
    assert (len(said), released.is_set()) == (1, False)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["latest", "step-00000007"]
    released.set()
    assert trained_with(lambda: Broken(""), tmp_path, tiny_tokens) == []
    assert_same(end_of(tmp_path), unbroken)


@pytest.mark.fault("D27")
def test_a_run_says_it_in_its_log_and_trackers_may_change_on_resume(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    root = tmp_path / "run"
    interrupted_run(recipe_of(tiny_reference, tiny_text), root)
    execute(recipe_of(tiny_reference, tiny_text, report={"trackers": ["trackio"]}), root)
    lines = Run(root).log_file.read_text().splitlines()
    assert len([line for line in lines if "tracker trackio: ModuleNotFoundError" in line]) == 1
    assert Run(root).read()["status"] == "done"


# -- clocks


@pytest.mark.fault("D28")
def test_a_clock_that_is_set_back_moves_no_duration(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()

    def backwards() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr(time, "time", backwards)
    _, trained, _ = run_training(tmp_path, tiny_tokens)
    assert 0 < trained.seconds < 60
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    elapsed = [row["elapsed_s"] for row in rows]
    assert elapsed == sorted(elapsed)
