"""A trained target gets untrained layers of its reference back, and is used as it is."""

import json
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inheritune.errors import RecipeError, SourceError
from inheritune.model_files.directory import open_model
from inheritune.model_files.scan import scan
from inheritune.surgery.cut import inherit
from inheritune.surgery.grow import giving_way, patch
from inheritune.training.models import load_model, save_model
from inheritune.verification.model import verify_model


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory):
    path = tmp_path_factory.mktemp("six") / "reference"
    return open_model(str(tiny_models.tiny_reference(path, num_hidden_layers=6)))


@pytest.fixture(scope="module")
def trained(six_layers, tmp_path_factory):
    """Layers 0, 2, 5 of six, every weight moved as by a training."""
    folder = tmp_path_factory.mktemp("trained")
    start = inherit(six_layers, [0, 2, 5], folder / "start")
    model = load_model(start.path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_model(model, folder / "trained", start.path)
    shutil.copy(start.path / "inherit.json", folder / "trained")
    return open_model(str(folder / "trained"))


def weights(model):
    return load_file(model.path / "model.safetensors")


def shards(model):
    found = {}
    for file in sorted(model.path.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize(
    ("own", "larger", "expected"),
    [
        ([0, 2, 5], [0, 1, 2, 5], {0}),  # stood for 0 and 1
        ([0, 2, 5], [0, 2, 3, 5], set()),  # stands for 2, 3 and 4, of which one is missing
        ([0, 2, 5], [0, 2, 3, 4, 5], {2}),
        ([0, 2, 5], [0, 1, 2, 3, 4, 5], {0, 2}),
        ([0, 1, 2], [0, 1, 2, 3], set()),  # the last stands for all above it
        ([0, 1, 2], [0, 1, 2, 3, 4, 5], {2}),
        ([2, 5], [0, 1, 2, 5], set()),  # none stood for what comes before the first
    ],
)
def test_a_layer_gives_way_when_all_that_it_stood_for_is_back(own, larger, expected):
    assert giving_way(own, larger, 6) == expected


def test_patched_layers_are_the_reference_s_and_all_others_the_trained_ones(
    trained, six_layers, tmp_path
):
    patched = patch(trained, six_layers, [0, 1, 2, 4, 5], tmp_path / "patched")
    own, whole, after = weights(trained), weights(six_layers), shards(patched)
    sources = {0: whole, 1: whole, 2: own, 3: whole, 4: own}  # layer 0 stood for 0 and 1
    numbers = {0: 0, 1: 1, 2: 1, 3: 4, 4: 2}
    for name, tensor in after.items():
        place = name.removeprefix("model.layers.").partition(".")[0]
        if place.isdecimal():
            source = sources[int(place)]
            wanted = source[name.replace(place, str(numbers[int(place)]), 1)]
        else:
            wanted = own[name]
        assert torch.equal(tensor, wanted), name
    record = json.loads((patched.path / "inherit.json").read_text("utf-8"))
    assert record["layer_map"] == [0, 1, 2, 4, 5] and record["patched"] is True
    assert record["grown_from"]["layer_map"] == [0, 2, 5]
    _, info = AutoModelForCausalLM.from_pretrained(patched.path, output_loading_info=True)
    assert not any(info.values())


def test_an_untrained_cut_patched_whole_is_the_reference(six_layers, tmp_path):
    cut = inherit(six_layers, [0, 2, 5], tmp_path / "cut")
    whole = patch(cut, six_layers, range(6), tmp_path / "whole")
    expected = weights(six_layers)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in shards(whole).items())
    assert whole.config == six_layers.config


def test_a_patched_target_is_proven_and_a_changed_byte_of_it_is_found(
    trained, six_layers, tmp_path
):
    patched = patch(trained, six_layers, [0, 1, 2, 5], tmp_path / "patched")
    proofs = {finding.part: finding for finding in verify_model(patched, six_layers)}
    assert proofs["bytes"].text.startswith("18 tensors that came back equal the reference's")
    assert all(finding.proven for finding in proofs.values())
    assert proofs["function"].text.startswith("the outputs of 2 layers equal the reference's")
    # Published by a run: its training.json has the digests, and nothing was trained since.
    record = json.loads((patched.path / "inherit.json").read_text("utf-8"))
    digests = {name: entry["xxh3"] for name, entry in record["tensors"].items()}
    (patched.path / "training.json").write_text(json.dumps({"tensors": digests}))
    published = {f.part: f for f in verify_model(open_model(str(patched.path)), six_layers)}
    assert published["bytes"] == proofs["bytes"]
    tensors = shards(patched)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    for file in patched.path.glob("*.safetensors"):
        file.unlink()
    (patched.path / "model.safetensors.index.json").unlink()
    save_file(tensors, patched.path / "model.safetensors", {"format": "pt"})
    changed = open_model(str(patched.path))
    with pytest.raises(SourceError, match="digest"):
        list(verify_model(changed, six_layers))
    name = "model.layers.1.mlp.up_proj.weight"
    record["tensors"][name]["xxh3"] = scan([changed.tensors[name]])[name].xxh3
    (patched.path / "inherit.json").write_text(json.dumps(record))
    (patched.path / "training.json").unlink()
    with pytest.raises(
        SourceError, match=r"differs from model\.layers\.1\.mlp\.up_proj\.weight of"
    ):
        list(verify_model(open_model(str(patched.path)), six_layers))


def test_a_layer_that_is_there_already_and_one_that_is_missing_are_refused(
    trained, six_layers, tmp_path
):
    with pytest.raises(RecipeError, match="has no more of those that the target has"):
        patch(trained, six_layers, [0, 2, 5], tmp_path / "patched")
    with pytest.raises(RecipeError, match="lacks layer 2"):
        patch(trained, six_layers, [0, 1, 5], tmp_path / "patched")


def test_another_reference_is_refused(trained, six_layers, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(six_layers.path, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.5.self_attn.q_proj.weight"][0, 0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="was cut from another model") as raised:
        patch(trained, open_model(str(other)), range(6), tmp_path / "patched")
    assert raised.value.hint == "Name the model that it was cut from."
    four = tiny_models.tiny_reference(tmp_path / "four")
    with pytest.raises(SourceError, match="of 6 layers; four has 4"):
        patch(trained, open_model(str(four)), range(4), tmp_path / "patched")
    assert not (tmp_path / "patched").exists()
