"""Trained models are published in the reference's dtype, and measured as they are published."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_recipe import as_file, recipe_of

from inheritune.data.tokens import open_tokens
from inheritune.errors import CheckpointError, DataError, DivergedError, RecipeError
from inheritune.evaluation.val_loss import measure_val_loss
from inheritune.model_files.directory import open_model
from inheritune.planning.recipe_plan import RecipePlan, plan_recipe
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Match
from inheritune.run.derive import judge
from inheritune.run.execute import RunResult, execute
from inheritune.steps.initial_weights import trained_weights
from inheritune.steps.result import TrainingResult
from inheritune.steps.training_task import published_dtype
from inheritune.training.models import load_model, save_model


class Finished(NamedTuple):
    """A finished run, and what was planned for it."""

    root: Path
    recipe: Recipe
    plan: RecipePlan
    result: RunResult


@pytest.fixture(scope="module")
def bf16_reference(tmp_path_factory, tiny_reference):
    """The tiny reference with its weights in bf16."""
    directory = tmp_path_factory.mktemp("bf16") / "reference"
    save_model(load_model(tiny_reference), directory, tiny_reference, "BF16")
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bf16_reference, tiny_text):
    """A finished run with a bf16 reference, a target that grows, and a stacked control."""
    recipe = recipe_of(
        bf16_reference,
        tiny_text,
        grow={"weights": "keep"},
        variants={"inherit": {"start": "inherit"}, "stack": {"start": "stacking", "layers": 2}},
    )
    root = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inheritune.run.derive.judge", lambda result, tolerance: "not_matched")
        return Finished(root, recipe, plan_recipe(recipe, root), execute(as_file(recipe), root))


def dtypes_in(directory):
    return {tensor.dtype for tensor in open_model(str(directory)).tensors.values()}


def test_every_model_of_a_run_has_the_dtype_of_its_reference(finished):
    root = finished.root
    models = [root / "target", *root.glob("variants/*/*/model")]
    assert len(models) == 1 + 2 + 2
    for model in models:
        assert dtypes_in(model) == {"BF16"}
        assert json.loads((model / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_reported_loss_is_that_of_the_published_weights(finished):
    root, result = finished.root, finished.result
    row = result.record.rounds[-1]
    tokens = open_tokens(root / "tokens").val
    measured = measure_val_loss(load_model(root / "target"), tokens, 16, 16)
    assert row.val_loss == measured.mean
    assert row.fp32_val_loss != row.val_loss
    assert row.fp32_val_loss == pytest.approx(row.val_loss, abs=1e-3)


def test_plan_record_and_files_state_the_same_bytes(finished):
    root, plan, result = finished.root, finished.plan, finished.result
    planned = {(training.name, training.layers): training.bytes for training in plan.trainings}
    for row in [*result.record.rounds, *result.record.variants]:
        if row.name == "reference" or row.path is None:
            continue
        stored = open_model(str(root / row.path / "model")).tensors.values()
        assert row.bytes == sum(tensor.size for tensor in stored)
        assert planned[row.name, row.layers] == row.bytes
        assert row.dtype == "BF16"


def test_fp32_weights_stay_only_where_a_later_training_starts_from_them(finished):
    kept = sorted(finished.root.glob("variants/*/*/master"))
    names = [path.parent.relative_to(finished.root / "variants").as_posix() for path in kept]
    assert names == ["inherit/2-layers", "inherit/3-layers", "stack/1-layers"]
    for path in kept:
        assert dtypes_in(path) == {"F32"}


@pytest.mark.parametrize("smaller", ["inherit/2-layers", "stack/1-layers"])
def test_the_published_weights_are_the_fp32_weights_rounded(finished, smaller):
    training = finished.root / "variants" / smaller
    master, published = (load_model(training / name) for name in ("master", "model"))
    for weight, rounded in zip(master.parameters(), published.parameters(), strict=True):
        assert torch.equal(weight.to(torch.bfloat16), rounded.to(torch.bfloat16))
    assert any(
        not torch.equal(weight, rounded)
        for weight, rounded in zip(master.parameters(), published.parameters(), strict=True)
    )


def test_the_same_command_measures_nothing_again(finished):
    files = sorted(finished.root.glob("variants/*/*/result.json"))
    times = [path.stat().st_mtime_ns for path in files]
    execute(as_file(finished.recipe), finished.root)
    assert [path.stat().st_mtime_ns for path in files] == times


@pytest.mark.parametrize(
    ("asked", "dtype"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16"), ("reference", "F32")]
)
def test_the_recipe_may_ask_for_another_dtype(asked, dtype, tiny_reference, tiny_text):
    recipe = recipe_of(tiny_reference, tiny_text, target={"dtype": asked})
    assert published_dtype(recipe, open_model(str(tiny_reference))) == dtype


def test_a_tensor_that_the_start_keeps_in_fp32_stays_so(bf16_reference, tmp_path):
    start = shutil.copytree(bf16_reference, tmp_path / "start")
    tensors = load_file(start / "model.safetensors")
    wide = "model.norm.weight"
    save_file(tensors | {wide: tensors[wide].float()}, start / "model.safetensors")
    save_model(load_model(start), tmp_path / "out", start, "BF16")
    written = open_model(str(tmp_path / "out")).tensors
    assert {name for name, tensor in written.items() if tensor.dtype == "F32"} == {wide}


def test_a_weight_that_is_no_number_has_diverged(tiny_reference, tmp_path):
    model = load_model(tiny_reference)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    for dtype in ("F32", "BF16"):
        with pytest.raises(DivergedError, match="NaN or infinite"):
            save_model(model, tmp_path / "out", tiny_reference, dtype)


@pytest.mark.parametrize("content", ["{}", "[]", '{"inputs": 5}', '{"inputs": null}', "{"])
def test_a_broken_result_is_named(content, finished, tmp_path):
    root = shutil.copytree(finished.root, tmp_path / "run")
    broken = root / "variants" / "inherit" / "2-layers" / "result.json"
    broken.write_text(content)
    with pytest.raises(DataError, match=r"result\.json"):
        execute(as_file(finished.recipe), root)


def test_a_training_does_not_start_from_rounded_weights(finished, tmp_path):
    training = shutil.copytree(finished.root / "variants/stack/1-layers", tmp_path / "training")
    assert dtypes_in(trained_weights(training).path) == {"F32"}
    shutil.rmtree(training / "master")
    with pytest.raises(CheckpointError, match="inheritune clean"):
        trained_weights(training)


def test_a_weight_beyond_the_range_of_fp16_is_refused(tiny_reference, tmp_path):
    model = load_model(tiny_reference)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    with pytest.raises(
        RecipeError, match=r"model\.norm\.weight of .* beyond the range of F16.*target\.dtype"
    ):
        save_model(model, tmp_path / "out", tiny_reference, "F16")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_rounding_moved_beyond_its_error_is_no_match():
    fields = dict.fromkeys(TrainingResult.__dataclass_fields__)
    base = TrainingResult(**fields | {"val_loss": 3.0, "val_loss_se": 0.1, "difference": -0.5})
    assert judge(base, Match()) == "matched"
    assert judge(replace(base, fp32_val_loss=2.95), Match()) == "matched"
    assert judge(replace(base, fp32_val_loss=3.2), Match()) == "matched"  # rounding lowered it
    rounded = replace(base, fp32_val_loss=2.8)
    assert judge(rounded, Match()) == "not_matched"
    assert rounded.fp32_difference == pytest.approx(-0.7)
