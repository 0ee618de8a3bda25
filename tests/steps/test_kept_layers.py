"""Growth that keeps the trained layers: weights, optimizer state, and the position in the data."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_recipe
import torch
from safetensors.torch import load_file

from inheritune.data.tokens import TokenStream
from inheritune.errors import CheckpointError, Interrupted, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.recipe.load import RecipeFile
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.steps.initial_weights import check_starts
from inheritune.system.progress import Progress
from inheritune.training import loop
from inheritune.verification.model import verify_model


def recipe_of(model: Path, text: Path, rounds: int = 2, weights: str = "keep") -> RecipeFile:
    return tiny_recipe.as_file(
        tiny_recipe.recipe_of(
            model,
            text,
            train={"warmup_tokens": 256},
            inherit={"layers": 1},
            grow={"max_rounds": rounds, "weights": weights},
            variants={"inherit": {"start": "inherit"}},
        )
    )


@pytest.fixture(autouse=True)
def never_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The samples of every training, in their order."""
    trainings: list[list[int]] = []
    train, samples = loop.train, TokenStream.samples

    def count(*arguments: Any, **more: Any) -> Any:
        trainings.append([])
        return train(*arguments, **more)

    def note(self: TokenStream, ids: Any, seq_len: int) -> Any:
        if trainings and self._directory.name == "tokens" and len(ids) == 8:
            trainings[-1] += [int(number) for number in ids]
        return samples(self, ids, seq_len)

    monkeypatch.setattr(loop, "train", count)
    monkeypatch.setattr(TokenStream, "samples", note)
    return trainings


def rows(folder: Path, key: str) -> list[Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in lines if key in row]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Weights and moments that the last grown training began with, and the checkpoint of these."""
    begun: dict[str, Any] = {}
    moments = loop.load_moments

    def look(checkpoint: Path, model: Any, optimizer: Any, *more: Any) -> None:
        moments(checkpoint, model, optimizer, *more)
        begun["weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        begun["moments"] = {
            f"{key}.{name}": value.clone()
            for name, p in model.named_parameters()
            for key, value in optimizer.state.get(p, {}).items()
        }
        begun["checkpoint"] = load_file(checkpoint / "optimizer.safetensors")

    monkeypatch.setattr(loop, "load_moments", look)
    return begun


def test_a_round_begins_where_the_one_before_ended(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, begun: dict[str, Any]
) -> None:
    execute(recipe_of(tiny_reference, tiny_text), tmp_path / "run")
    first, second = (tmp_path / "run" / "variants" / "inherit" / f"{n}-layers" for n in (1, 2))

    trained = weights_of(first)
    reference = load_file(tiny_reference / "model.safetensors")
    for name, tensor in begun["weights"].items():
        expected = trained.get(name)
        if "layers.1." in name:
            assert expected is None
            expected = reference[name].float()
        assert torch.equal(tensor, expected), name
    # Moments of all that was trained, bit for bit; none for what is new.
    assert begun["moments"].keys() == begun["checkpoint"].keys()
    for name, tensor in begun["moments"].items():
        assert torch.equal(tensor, begun["checkpoint"][name]), name
    assert not any("layers.1." in name for name in begun["moments"])
    # The schedule starts afresh, and so do the steps.
    assert rows(second, "learning_rate") == rows(first, "learning_rate")
    assert rows(second, "step")[0] == 0
    steps = load_file(next((second / "checkpoints").glob("step-*")) / "optimizer.safetensors")
    assert float(steps["step.model.layers.0.mlp.up_proj.weight"]) == 20
    assert float(steps["step.model.layers.1.mlp.up_proj.weight"]) == 10


@pytest.mark.parametrize("start", ["keep", "grown"])
def test_a_layer_that_comes_back_between_trained_ones_moves_weights_and_moments(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, begun: dict[str, Any], start: str
) -> None:
    control = {"grown": {"start": "grown"}} if start == "grown" else {}
    recipe = tiny_recipe.recipe_of(
        tiny_reference,
        tiny_text,
        inherit={"layers": None, "select": "0,3"},
        grow={"max_rounds": 2, "weights": "keep" if start == "keep" else "reinherit"},
        variants={"inherit": {"start": "inherit"}} | control,
    )
    execute(tiny_recipe.as_file(recipe), tmp_path / "run")
    variants = tmp_path / "run" / "variants"
    owner = "inherit" if start == "keep" else "grown"
    record = json.loads((variants / owner / "3-layers" / "inherit.json").read_text("utf-8"))
    back = record["layer_map"][1]
    assert record["layer_map"] == [0, back, 3] and back in (1, 2)
    trained = weights_of(variants / "inherit" / "2-layers")
    reference = load_file(tiny_reference / "model.safetensors")
    places = {"0": "0", "2": "1"}  # of trained layers, before and after
    for name, tensor in begun["weights"].items():
        number = name.removeprefix("model.layers.").partition(".")[0]
        before = name.replace(f"layers.{number}.", f"layers.{places.get(number)}.")
        expected = trained[before] if number != "1" else reference[name.replace("1", str(back), 1)]
        assert torch.equal(tensor, expected.float()), name
    moved = {name.replace("layers.1.", "layers.2."): t for name, t in begun["checkpoint"].items()}
    assert begun["moments"].keys() == moved.keys()
    assert all(torch.equal(tensor, moved[name]) for name, tensor in begun["moments"].items())
    row = next(row for row in Run(tmp_path / "run").read()["variants"] if row["name"] == owner)
    if start == "grown":
        assert row["made_of"] == f"2 trained layers of inherit, and layer {back} of the reference"
    target, whole = (open_model(str(p)) for p in (tmp_path / "run" / "target", tiny_reference))
    assert any(finding.part == "config" for finding in verify_model(target, whole))


def test_the_data_goes_on_under_keep_and_restarts_under_reinherit(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, asked: list[list[int]]
) -> None:
    execute(recipe_of(tiny_reference, tiny_text), tmp_path / "keep")
    execute(recipe_of(tiny_reference, tiny_text, weights="reinherit"), tmp_path / "again")
    kept, fresh = (Run(tmp_path / name).read() for name in ("keep", "again"))
    assert any("continued from the trained layers" in note for note in kept["notes"])
    assert not any("continued from the trained layers" in note for note in fresh["notes"])
    keep, again = asked[:2], asked[2:]
    assert [len(part) for part in asked] == [80] * 4
    assert keep[0] == again[0] == again[1]
    assert not set(keep[0]) & set(keep[1])  # one epoch holds more than both rounds
    second = tmp_path / "keep" / "variants" / "inherit" / "2-layers"
    assert rows(second, "epoch")[0] == pytest.approx(
        rows(second.with_name("1-layers"), "epoch")[-1], abs=1e-5
    )


# Of 60 reports of progress: in the first round, at its last step, while it is measured, at its end,
# and at the beginning of the second one.
@pytest.mark.parametrize("allowed", [24, 27, 36, 38, 39, 40])
def test_a_run_stopped_around_growing_continues_to_the_same_bits(
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
    allowed: int,
    unbroken: dict[str, torch.Tensor],
) -> None:
    recipe, root, heard = recipe_of(tiny_reference, tiny_text), tmp_path / "run", 0

    def on_progress(progress: Progress) -> None:
        nonlocal heard
        heard += 1
        if heard == allowed:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(recipe, root, on_progress)
    execute(recipe, root)
    found = load_file(root / "target" / "model.safetensors")
    assert found.keys() == unbroken.keys()
    assert all(torch.equal(found[name], unbroken[name]) for name in unbroken)


@pytest.fixture(scope="module")
def unbroken(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    root = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("inheritune.run.derive.judge", lambda trial, tolerance: "not_matched")
        execute(recipe_of(tiny_reference, tiny_text), root)
    return load_file(root / "target" / "model.safetensors")


def test_a_crash_between_growing_and_the_first_save_costs_nothing(
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: dict[str, torch.Tensor],
) -> None:
    recipe, root = recipe_of(tiny_reference, tiny_text), tmp_path / "run"

    def crash(*arguments: object) -> int:
        raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "load_moments", crash)
        with pytest.raises(RuntimeError, match="plug"):
            execute(recipe, root)
    assert (root / "variants" / "inherit" / "2-layers" / "start" / "config.json").exists()
    execute(recipe, root)
    found = load_file(root / "target" / "model.safetensors")
    assert all(torch.equal(found[name], unbroken[name]) for name in unbroken)


def test_missing_optimizer_state_of_the_smaller_model_is_an_error(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    execute(recipe_of(tiny_reference, tiny_text, rounds=1), root)
    shutil.rmtree(root / "variants" / "inherit" / "1-layers" / "checkpoints")
    with pytest.raises(CheckpointError, match="optimizer state at the end of") as error:
        execute(recipe_of(tiny_reference, tiny_text, rounds=2), root)
    assert error.value.exit_code == 3


def test_keeping_layers_is_refused_at_plan_time_where_weights_are_shared_out_to_layers(
    tiny_text: Path, tmp_path: Path
) -> None:
    tiny_models.save_gemma3n(tmp_path / "reference")
    recipe = recipe_of(tmp_path / "reference", tiny_text).recipe
    with pytest.raises(UnsupportedModelError, match="a part for each of them"):
        check_starts(recipe, open_model(str(tmp_path / "reference")), [5, 6, 7])
