"""`--from CHECKPOINT`: continuing from a named checkpoint."""

import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import group_work as work
from typer.testing import CliRunner, Result

from inheritune.cli.app import app
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import CheckpointError, Interrupted, RecipeError
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe
from inheritune.run.execute import execute
from inheritune.run.one_step import train_only
from inheritune.run.pretraining import plan_pretraining, pretrain
from inheritune.run_directory import Run
from inheritune.system.progress import Progress, silent
from inheritune.training import checkpoint as state

SETS = ["train.tokens=1280", "train.seq_len=16", "train.batch_tokens=128", "train.precision=fp32"]
SETS += ["train.learning_rate=1e-3", "train.warmup_tokens=0", "train.keep=9"]
SAVE_ALWAYS = "train.save_minutes=1e-9"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def recipe_of(model: Path, text: Path) -> RecipeFile:
    train = {"tokens": 1280, "seq_len": 16, "batch_tokens": 128, "micro_batch": 8, "keep": 9}
    train |= {"learning_rate": 1e-3, "min_learning_rate": 1e-4, "precision": "fp32"}
    fields: dict[str, Any] = {
        "name": "tiny",
        "reference": {"model": str(model)},
        "data": {"source": str(text), "val_fraction": 0.2},
        "train": train | {"save_minutes": 1e-9},
        "evaluate": {"gains": False},
        "grow": {"add": 0},
        "analyze": None,
    }
    return RecipeFile(None, "# made by a test\n", Recipe.model_validate(fields), {})


def stop_at(tokens: int, task: str) -> Any:
    def on_progress(progress: Progress) -> None:
        if progress.task == task and progress.unit == "tokens" and progress.done == tokens:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


@pytest.fixture(scope="module")
def begun(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A training without a recipe, stopped at step 6, with a checkpoint of each step."""
    out = tmp_path_factory.mktemp("begun") / "out"
    plan = plan_pretraining(str(tiny_reference), tiny_tokens.path, out, [*SETS, SAVE_ALWAYS])
    with pytest.raises(Interrupted):
        pretrain(plan, out, stop_at(6 * 128, "train, 4 layers"))
    return out


@pytest.fixture
def out(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "out"))


@pytest.fixture(scope="module")
def run(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RecipeFile, Path]:
    """A run stopped at step 4 of its target."""
    root = tmp_path_factory.mktemp("run") / "tiny"
    recipe = recipe_of(tiny_reference, tiny_text)
    with pytest.raises(Interrupted):
        execute(recipe, root, stop_at(4 * 128, "inherit, 2 layers"))
    return recipe, root


def go_on(
    model: Path, tokens: TokenDirectory, out: Path, step: int, *sets: str, **more: Any
) -> Any:
    plan = plan_pretraining(str(model), tokens.path, out, [*SETS, *sets])
    checkpoint = out / "checkpoints" / f"step-{step:08d}"
    return asdict(
        pretrain(plan, out, more.pop("on_progress", silent), checkpoint=checkpoint, **more)
    )


# -- what becomes of the later ones


def test_later_checkpoints_go_when_the_named_one_has_a_successor(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    work.run_training(whole, tiny_tokens)
    for step in (3, 5, 7):
        work.run_training(tmp_path, tiny_tokens, stop_after=step, keep=9)
    checkpoints, seen = tmp_path / "checkpoints", []

    def look(progress: Progress) -> None:
        seen.append((progress.done // 128, names(checkpoints)))

    first = checkpoints / "step-00000003"
    at_7 = {"stop_after": 7, "keep": 9, "checkpoint": first, "heard": look}
    work.run_training(tmp_path, tiny_tokens, **at_7)
    aside = ["set-aside-step-00000005", "set-aside-step-00000007"]
    assert seen[0] == (3, ["latest", *aside, "step-00000003"])
    assert seen[-1] == (7, ["latest", *aside, "step-00000003"])
    assert names(checkpoints) == ["latest", "step-00000003", "step-00000007"]
    _, trained, _ = work.run_training(tmp_path, tiny_tokens)  # from 7, which is of the new branch
    assert trained.notes == ()
    ours, theirs = (
        load_file(folder / "checkpoints" / "step-00000020" / "model.safetensors")
        for folder in (tmp_path, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, 21))


def test_the_named_checkpoint_is_the_newest_after_a_kill_before_the_first_save(
    tiny_tokens: TokenDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 5):
        work.run_training(tmp_path, tiny_tokens, stop_after=step, keep=9)
    first = tmp_path / "checkpoints" / "step-00000003"

    def crash(*arguments: object) -> None:
        raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patched:
        patched.setattr(state, "write_pieces", crash)
        with pytest.raises(RuntimeError, match="plug"):
            work.run_training(tmp_path, tiny_tokens, stop_after=4, checkpoint=first)
    assert names(first.parent) == ["latest", "set-aside-step-00000005", "step-00000003"]
    assert (first.parent / "latest").read_text() == "step-00000003\n"
    for _ in range(2):  # and may be named again
        work.run_training(tmp_path, tiny_tokens, stop_after=5, keep=9, checkpoint=first)
        assert names(first.parent) == ["latest", "step-00000003", "step-00000005"]


def test_a_step_of_the_new_branch_is_not_taken_for_that_of_the_old_one(
    out: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    key = "train.learning_rate"
    old = load_file(out / "checkpoints" / "step-00000006" / "model.safetensors")
    on_progress = stop_at(6 * 128, "train, 4 layers")
    with pytest.raises(Interrupted, match="Run it again without --from to continue"):
        go_on(
            tiny_reference,
            tiny_tokens,
            out,
            3,
            f"{key}=9e-3",
            allowed=[key],
            on_progress=on_progress,
        )
    kept = [f"step-{n:08d}" for n in (1, 2, 3, 6)]
    assert names(out / "checkpoints") == ["latest", *kept]
    new = load_file(out / "checkpoints" / "step-00000006" / "model.safetensors")
    assert not torch.equal(old["model.norm.weight"], new["model.norm.weight"])
    rates = [row["learning_rate"] for row in rows(out) if "loss" in row]
    assert max(rates[:3]) <= 1e-3 < min(rates[3:])


def test_a_stop_before_the_training_suggests_the_same_command(
    out: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    (out / "benchmark.json").unlink()

    def on_progress(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="Run the same command to continue"):
        go_on(tiny_reference, tiny_tokens, out, 3, on_progress=on_progress)
    assert len(names(out / "checkpoints")) == 7


def test_checkpoints_set_aside_are_noted_and_removed_at_the_end(
    out: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    final = go_on(tiny_reference, tiny_tokens, out, 4)
    said = "set aside step-00000006: step-00000004 was named to go on from"
    assert said in final["notes"]
    assert final["restarts"] == 1
    assert names(out / "checkpoints") == []


# -- what cannot be gone on from


def test_a_broken_checkpoint_ends_with_3(
    out: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    broken = out / "checkpoints" / "step-00000004" / "model.safetensors"
    os.truncate(broken, 100)
    before = names(broken.parents[1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has 100 bytes") as error:
        go_on(tiny_reference, tiny_tokens, out, 4)
    assert error.value.exit_code == 3
    assert Run(out).read()["exit_code"] == 3
    assert names(broken.parents[1]) == before
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*step-00000009") as missing:
        go_on(tiny_reference, tiny_tokens, out, 9)
    assert "step-00000005, step-00000006" in missing.value.hint


def test_a_path_that_is_no_checkpoint_of_the_training_ends_with_2(
    out: Path, begun: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    plan = plan_pretraining(str(tiny_reference), tiny_tokens.path, out, SETS)
    elsewhere = [begun / "checkpoints" / "step-00000003", out / "checkpoints", out, Path("/")]
    elsewhere += [out / "checkpoints" / "latest", out / "model" / "step-00000003"]
    for path in elsewhere:
        with pytest.raises(RecipeError, match="is no checkpoint of a training in") as error:
            pretrain(plan, out, checkpoint=path)
        assert error.value.exit_code == 2
    assert len(names(out / "checkpoints")) == 7


def test_other_settings_are_refused_and_no_checkpoint_is_set_aside(
    out: Path, tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    with pytest.raises(RecipeError, match=r"train\.seed = 0; now it is 1"):
        go_on(tiny_reference, tiny_tokens, out, 3, "train.seed=1")
    assert len(names(out / "checkpoints")) == 7


# -- in the run of a recipe


def test_a_run_continues_from_the_named_checkpoint_and_then_trains_the_controls(
    run: tuple[RecipeFile, Path], tmp_path: Path
) -> None:
    recipe, begun = run
    root = Path(shutil.copytree(begun, tmp_path / "tiny"))
    folder = root / "variants" / "inherit" / "2-layers"
    checkpoint = folder / "checkpoints" / "step-00000002"
    with pytest.raises(RecipeError, match=r"but the training that continues is that in .*scratch"):
        train_only(recipe, root, "scratch", checkpoint=checkpoint)
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    through = linked / checkpoint.relative_to(root)
    final = execute(recipe, root, checkpoint=through).summary
    assert [row["name"] for row in final["variants"]] == ["reference", "inherit", "scratch"]
    notes = Run(root).read()["rounds"][0]["notes"]
    assert any("step-00000002 was named" in note for note in notes)
    with pytest.raises(RecipeError, match="is finished: nothing continues from step-00000002"):
        execute(recipe, root, checkpoint=checkpoint)
    assert Run(root).read()["result"] == final


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_run_and_train_have_the_option_from(
    run: tuple[RecipeFile, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(json.dumps(run[0].recipe.resolved()))
    shutil.copytree(run[1], "runs/tiny")
    checkpoints = Path("runs/tiny/variants/inherit/2-layers/checkpoints")
    for command in ("run", "train"):
        result = invoke(command, "recipe.yaml", "--from", checkpoints / "step-00000099")
        assert result.exit_code == 3
        assert "step-00000099. There are: step-00000001" in result.stderr
        assert "--from" in invoke(command, "--help").output
    result = invoke("train", "recipe.yaml", "--from", checkpoints / "step-00000002")
    assert result.exit_code == 0, result.output
    rows_of = rows(checkpoints.parent)
    assert [row["step"] for row in rows_of if row.get("event") == "continued"] == [2]
