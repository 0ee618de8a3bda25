"""Safetensors under other names, or with a wrapper's names, become a model directory."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune import api
from inheritune.errors import InherituneError, RecipeError, SourceError
from inheritune.model_files.directory import open_model

WEIGHTS = "model.safetensors"


def equal(directory, expected):
    written = {}
    for file in directory.glob("*.safetensors"):
        written |= load_file(file)
    return written.keys() == expected.keys() and all(
        torch.equal(written[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: f"_orig_mod.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: n.replace(".layers.0.", ".layers.0._checkpoint_wrapped_module."),
        lambda n: f"_fsdp_wrapped_module.{n}".replace("mlp.", "mlp._fsdp_wrapped_module."),
        lambda n: f"base_model.model.{n}",
        lambda n: f"model.{n}",
    ],
    ids=["compile", "ddp and compile", "checkpointing", "fsdp", "peft", "lightning"],
)
@pytest.mark.parametrize(
    "pickled",
    [False, pytest.param(True, marks=pytest.mark.slow)],  # a process reads a pickle
    ids=["safetensors", "pickle"],
)
def test_what_a_wrapper_added_to_names_is_taken_off(reference, tmp_path, rename, pickled):
    expected = load_file(reference / WEIGHTS)
    renamed = {rename(name): tensor for name, tensor in expected.items()}
    if pickled:
        (reference / WEIGHTS).unlink()
        torch.save({"state_dict": renamed}, reference / "last.ckpt")
    else:
        save_file(renamed, reference / WEIGHTS, {"format": "pt"})
    done = api.convert(reference, tmp_path / "out", progress=False)
    assert equal(tmp_path / "out", expected)
    assert any("taken off" in warning for warning in done.warnings)
    assert done.check == "complete: LlamaForCausalLM"


@pytest.mark.parametrize(
    "names",
    [
        ["ft-model-00001-of-00002.safetensors", "ft-model-00002-of-00002.safetensors"],
        ["model.fp16.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ],
    ids=["torchtune", "variant", "no index"],
)
def test_files_under_other_names_are_collected(reference, tmp_path, names):
    expected = load_file(reference / WEIGHTS)
    (reference / WEIGHTS).unlink()
    for i, name in enumerate(names):
        part = list(expected)[i :: len(names)]
        save_file({key: expected[key] for key in part}, reference / name, {"format": "pt"})
    with pytest.raises(SourceError, match="nor with an index") as refused:
        open_model(str(reference))
    assert f"`inheritune convert {reference} OUT`" in refused.value.hint
    api.convert(reference, tmp_path / "out", progress=False)
    assert equal(tmp_path / "out", expected)
    assert open_model(str(tmp_path / "out")).layers == 4


def test_a_leftover_entry_is_left_out_of_the_config(reference, tmp_path):
    path = reference / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"_load_in_4bit": True}}
    path.write_text(json.dumps(config))
    done = api.convert(reference, tmp_path / "out", progress=False)
    assert done.warnings == ["the weights are not quantised: quantization_config is left out."]
    assert open_model(str(tmp_path / "out")).config == {
        key: value for key, value in config.items() if key != "quantization_config"
    }


def test_two_whole_models_in_one_directory_are_not_mixed(reference, tmp_path):
    held = load_file(reference / WEIGHTS)
    (reference / WEIGHTS).unlink()
    for name in ("model.fp16.safetensors", "model.fp32.safetensors"):
        save_file(held, reference / name, {"format": "pt"})
    with pytest.raises(SourceError, match=r"is in two files, model.fp16.safetensors and"):
        api.convert(reference, tmp_path / "out", progress=False)


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_some_of_several_files_are_no_model(reference, tmp_path, stem):
    name = "{}-00001-of-00002.{}".format(*stem.split("."))
    (reference / WEIGHTS).rename(reference / name)
    with pytest.raises(SourceError, match=r"holds 1 of the 2 files \w+-...-of-00002\.\w+\."):
        api.convert(reference, tmp_path / "out", progress=False)


@pytest.mark.slow
def test_numbered_pickles_without_an_index_are_one_model(reference, tmp_path):
    held = load_file(reference / WEIGHTS)
    (reference / WEIGHTS).unlink()
    for number in (1, 2):
        part = dict(list(held.items())[number - 1 :: 2])
        torch.save(part, reference / f"pytorch_model-0000{number}-of-00002.bin")
    api.convert(reference, tmp_path / "out", progress=False)
    assert equal(tmp_path / "out", held)


def test_a_command_in_a_message_can_be_pasted(reference, tmp_path):
    spaced = reference.rename(reference.parent / "my model")
    held = load_file(spaced / WEIGHTS)
    save_file({f"module.{name}": tensor for name, tensor in held.items()}, spaced / WEIGHTS)
    for name in (None, "other.safetensors"):
        if name:
            (spaced / WEIGHTS).rename(spaced / name)
        with pytest.raises(InherituneError) as refused:
            open_model(str(spaced))
        assert f"`inheritune convert '{spaced}' OUT`" in refused.value.hint


def test_a_model_that_needs_nothing_is_used_as_it_is(reference, tmp_path):
    with pytest.raises(SourceError, match="in safetensors already"):
        api.convert(reference, tmp_path / "out", progress=False)
    with pytest.raises(RecipeError, match="--config-from"):
        api.convert(reference, tmp_path / "out", config_from="x", progress=False)


def test_a_missing_weight_is_told_before_anything_is_written(reference, tmp_path):
    held = load_file(reference / WEIGHTS)
    del held["model.norm.weight"]
    save_file({f"module.{name}": tensor for name, tensor in held.items()}, reference / WEIGHTS)
    with pytest.raises(SourceError, match="would fill 1 weights at random"):
        api.convert(reference, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_layers_are_chosen_of_safetensors_only(reference, tmp_path):
    (reference / WEIGHTS).rename(reference / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="--layers goes with safetensors"):
        api.convert(reference, tmp_path / "out", layers="2", progress=False)
