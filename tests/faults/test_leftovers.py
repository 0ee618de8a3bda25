"""Inject leftovers of killed runs: what is there is reused only where it was made from the same."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe

from inheritune.recipe.load import RecipeFile
from inheritune.run.execute import RunResult, execute
from inheritune.system.progress import Progress


def recipe_of(model: Path, text: Path, control: dict[str, Any], **train: Any) -> RecipeFile:
    recipe = tiny_recipe.recipe_of(
        model,
        text,
        grow={"add": 0},
        train=train,
        variants={"inherit": {"start": "inherit"}, "control": control},
    )
    return tiny_recipe.as_file(recipe)


def kill_once_control_trains(recipe: RecipeFile, root: Path) -> None:
    """Start a run in a child, and kill it when a training of the control is under way."""

    def on_progress(progress: Progress) -> None:
        if progress.task.startswith("control") and progress.unit == "tokens" and progress.done:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            execute(recipe, root, on_progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def control_of(result: RunResult | None) -> dict[str, Any]:
    assert result is not None
    return next(row for row in result.rows() if row["name"] == "control")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"start": "inherit", "select": "0,2"}, {"start": "inherit", "select": "1,2"}),
        ({"start": "inherit", "parts": "mlp"}, {"start": "inherit", "parts": "outer-only"}),
        ({"start": "hybrid-stacking"}, {"start": "inherit", "select": "0,2"}),
        ({"start": "fresh"}, {"start": "inherit", "select": "0,2"}),
        ({"start": "inherit", "select": "0,2"}, {"start": "fresh"}),
    ],
)
@pytest.mark.fault("D29")
def test_a_start_of_another_recipe_is_made_anew_and_never_trained(
    before: dict[str, Any],
    after: dict[str, Any],
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    changed = recipe_of(tiny_reference, tiny_text, after)
    unbroken = control_of(execute(changed, tmp_path / "unbroken"))
    kill_once_control_trains(recipe_of(tiny_reference, tiny_text, before), tmp_path / "run")
    assert list((tmp_path / "run").glob("variants/control/*/start"))
    resumed = control_of(execute(changed, tmp_path / "run"))
    assert resumed["val_loss"] == unbroken["val_loss"]
    training = Path("variants/control/2-layers")
    for record in ("inherit.json", "start.json"):
        written = [(tmp_path / run / training / record).is_file() for run in ("unbroken", "run")]
        assert written[0] == written[1], record


@pytest.mark.fault("D29")
def test_a_start_of_fresh_parts_is_made_anew_for_another_seed(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    control = {"start": "inherit", "parts": "outer-only"}
    changed = recipe_of(tiny_reference, tiny_text, control, seed=2)
    unbroken = control_of(execute(changed, tmp_path / "unbroken"))
    first = recipe_of(tiny_reference, tiny_text, control, seed=1)
    kill_once_control_trains(first, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "variants" / "inherit")  # its result would refuse the seed
    resumed = control_of(execute(changed, tmp_path / "run"))
    assert resumed["val_loss"] == unbroken["val_loss"]


@pytest.mark.fault("D29")
def test_a_start_of_the_same_recipe_is_not_made_again(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, {"start": "hybrid-stacking"})
    kill_once_control_trains(recipe, tmp_path / "run")
    (start,) = (tmp_path / "run").glob("variants/control/*/start")
    before = (start / "model.safetensors").stat()
    monkeypatch.setattr("inheritune.steps.initial_weights.stack", lambda *_: pytest.fail("again"))
    assert (start / "model.safetensors").stat().st_ino == before.st_ino
    execute(recipe, tmp_path / "run")


@pytest.mark.fault("D29")
def test_a_start_that_does_not_say_what_it_was_made_from_is_made_anew(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, {"start": "inherit", "select": "1,2"})
    other = recipe_of(tiny_reference, tiny_text, {"start": "inherit", "select": "0,2"})
    unbroken = control_of(execute(recipe, tmp_path / "unbroken"))
    kill_once_control_trains(other, tmp_path / "run")  # as version 0.1.0 left it
    (start,) = (tmp_path / "run").glob("variants/control/*/start")
    (start / "made_from.json").unlink(missing_ok=True)
    assert control_of(execute(recipe, tmp_path / "run"))["val_loss"] == unbroken["val_loss"]


@pytest.mark.fault("D30")
def test_a_users_copy_of_a_checkpoint_is_never_taken_for_one(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
    recipe = tiny_recipe.recipe_of(
        tiny_reference,
        tiny_text,
        inherit={"layers": 1},
        grow={"weights": "keep"},
        variants={"inherit": {"start": "inherit"}},
    )
    file = tiny_recipe.as_file(recipe)
    unbroken = execute(file, tmp_path / "unbroken")

    def stop_in_second_round(progress: Progress) -> None:
        if progress.task == "inherit, 2 layers" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(file, tmp_path / "run", stop_in_second_round)
    (end,) = (tmp_path / "run").glob("variants/inherit/1-layers/checkpoints/step-*")
    copy = end.with_name(f"{end.name}-backup")
    shutil.copytree(end, copy)
    (copy / "optimizer.safetensors").write_bytes(b"broken")
    resumed = execute(file, tmp_path / "run")
    assert unbroken is not None and resumed is not None
    assert resumed.val_loss == unbroken.val_loss
    assert end.is_dir() and copy.is_dir()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]
