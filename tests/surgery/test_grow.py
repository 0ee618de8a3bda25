"""A trained target grows by layers of its reference, and nothing that was trained is lost."""

import json
import re
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import inheritune
from inheritune.errors import RecipeError, SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import inherit
from inheritune.surgery.grow import grow
from inheritune.training.models import load_model, save_model
from inheritune.verification.model import verify_model


def tensors_of(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def train(start, out):
    """Stands for training: every weight moves by what bf16 cannot hold."""
    model = load_model(start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))
    save_model(model, out, start)
    if (start / "inherit.json").is_file():
        shutil.copy(start / "inherit.json", out)
    return open_model(str(out))


def test_a_trained_model_keeps_an_infinite_number_of_its_config(reference, tmp_path):
    config = json.loads((reference / "config.json").read_text())
    config["time_step_limit"] = [0.0, float("inf")]  # as the published configs of Mamba
    (reference / "config.json").write_text(json.dumps(config))
    trained = train(reference, tmp_path / "trained")
    assert trained.config["time_step_limit"] == [0.0, float("inf")]


@pytest.mark.parametrize("family", list(tiny_models.FAMILIES))
def test_trained_tensors_are_kept_and_new_layers_are_the_reference_s(tiny_model, tmp_path, family):
    reference = open_model(str(tiny_model(family)))
    trained = train(inherit(reference, 2, tmp_path / "start").path, tmp_path / "trained")
    grown = grow(trained, reference, 3, tmp_path / "grown")
    before, after = tensors_of(trained.path), tensors_of(grown.path)
    whole, prefix = tensors_of(reference.path), reference.container.prefix
    for name, tensor in after.items():
        third = name.startswith(f"{grown.container.prefix}2.")
        wanted = (
            whole[prefix + name.removeprefix(grown.container.prefix)] if third else before[name]
        )
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name
    assert before.keys() < after.keys()
    _, info = AutoModelForCausalLM.from_pretrained(grown.path, output_loading_info=True)
    assert not any(info.values())
    assert {finding.part for finding in verify_model(grown) if not finding.proven} == {"function"}
    proofs = {finding.part: finding.text for finding in verify_model(grown, reference)}
    assert proofs["bytes"].endswith(f"; {len(before)} are a target's own")
    assert proofs["function"].startswith("the outputs of a layer equal the reference's")


def test_trained_fp32_is_never_rounded_to_the_dtype_of_a_bf16_reference(tmp_path):
    tiny_models.save("llama", tmp_path / "reference", dtype=torch.bfloat16)
    reference = open_model(str(tmp_path / "reference"))
    trained = train(inherit(reference, 1, tmp_path / "start").path, tmp_path / "trained")
    grown = grow(trained, reference, 4, tmp_path / "grown")
    before, after = tensors_of(trained.path), tensors_of(grown.path)
    assert {t.dtype for t in after.values()} == {torch.float32}
    rounded = [n for n in before if torch.equal(before[n], before[n].bfloat16().float())]
    assert not rounded
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert grown.config["dtype"] == "float32"
    record = json.loads((grown.path / "inherit.json").read_text())
    assert record["grown_from"]["layers"] == 1
    assert record["check"].startswith("complete: ")
    origins = {n: e["from"] for n, e in record["tensors"].items()}
    assert origins["model.norm.weight"] == origins["model.layers.0.mlp.up_proj.weight"] == "target"
    assert origins["model.layers.3.mlp.up_proj.weight"] == "reference"


def test_names_without_the_prefix_of_the_head_model_grow_too(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    held = {n.removeprefix("model."): t for n, t in held.items()}
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    opened = open_model(str(reference))
    trained = train(inherit(opened, 2, tmp_path / "start").path, tmp_path / "trained")
    grown = grow(trained, opened, 3, tmp_path / "grown")
    assert torch.equal(
        tensors_of(grown.path)["model.layers.2.mlp.up_proj.weight"],
        held["layers.2.mlp.up_proj.weight"],
    )


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_number_of_layers_that_is_no_growth_is_refused(tiny_reference, tmp_path, layers):
    reference = open_model(str(tiny_reference))
    target = inherit(reference, 2, tmp_path / "target")
    with pytest.raises(RecipeError, match="Choose between 3 and 4"):
        grow(target, reference, layers, tmp_path / "grown")


def test_weights_that_are_shared_out_to_layers_are_refused(tmp_path):
    tiny_models.save_gemma3n(tmp_path / "reference")
    reference = open_model(str(tmp_path / "reference"))
    target = inherit(reference, 5, tmp_path / "target")
    with pytest.raises(UnsupportedModelError, match="a part for each of them"):
        grow(target, reference, 7, tmp_path / "grown")


def test_a_changed_byte_of_a_grown_target_is_found(tiny_reference, tmp_path):
    reference = open_model(str(tiny_reference))
    trained = train(inherit(reference, 2, tmp_path / "start").path, tmp_path / "trained")
    grown = grow(trained, reference, 3, tmp_path / "grown")
    data = bytearray((grown.path / "model-00001-of-00002.safetensors").read_bytes())
    data[-1] ^= 1
    (grown.path / "model-00001-of-00002.safetensors").write_bytes(data)
    with pytest.raises(SourceError, match="digest"):
        list(verify_model(grown))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "opt", "mixtral"])
def test_a_layer_comes_back_at_its_place_between_trained_ones(tiny_model, tmp_path, family):
    reference = open_model(str(tiny_model(family)))
    trained = train(inherit(reference, [0, 3], tmp_path / "start").path, tmp_path / "trained")
    shutil.copy(tmp_path / "start" / "inherit.json", trained.path)
    trained = open_model(str(trained.path))
    grown = grow(trained, reference, [0, 2, 3], tmp_path / "grown")
    before, after, whole = (tensors_of(model.path) for model in (trained, grown, reference))
    prefix, own = reference.container.prefix, grown.container.prefix
    assert grown.layers == 3 and len(after) > len(before)
    for name, tensor in after.items():
        place = name.removeprefix(own).partition(".")[0] if name.startswith(own) else ""
        if place == "1":
            wanted = whole[f"{prefix}2{name.removeprefix(f'{own}1')}"]
        elif place == "2":
            wanted = before[f"{own}1{name.removeprefix(f'{own}2')}"]
        else:
            wanted = before[name]
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name
    record = json.loads((grown.path / "inherit.json").read_text())
    assert record["layer_map"] == [0, 2, 3]
    assert record["grown_from"] == {"name": "trained", "layers": 2, "layer_map": [0, 3]}
    proofs = {finding.part: finding.text for finding in verify_model(grown, reference)}
    assert proofs["bytes"].endswith(f"; {len(before)} are a target's own")


def test_a_grown_cut_is_the_larger_cut_bit_for_bit(tiny_model, tmp_path):
    reference = open_model(str(tiny_model("gpt-neo")))  # global, local, global, local
    cut = inherit(reference, [0, 3], tmp_path / "cut")
    grown = grow(cut, reference, [0, 1, 2, 3], tmp_path / "grown")
    whole = tensors_of(reference.path)
    assert all(torch.equal(t, whole[n]) for n, t in tensors_of(grown.path).items())
    assert grown.config == inherit(reference, 4, tmp_path / "whole").config
    part = grow(cut, reference, [0, 1, 3], tmp_path / "part")
    larger = inherit(reference, [0, 1, 3], tmp_path / "larger")
    assert part.config == larger.config
    expected = tensors_of(larger.path)
    assert all(torch.equal(t, expected[n]) for n, t in tensors_of(part.path).items())


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (3, r"3 does not say which are to come back.\nList all that it is to have, such as"),
        ([0, 1, 2], "layers 0-2 lacks layer 3 of those that the target has"),
        ([0, 3], "layers 0, 3 has no more of those that the target has"),
        ([0, 3, 4], "there is no layer 4"),
    ],
)
def test_layers_that_are_no_growth_of_moved_ones_are_refused(
    tiny_reference, tmp_path, layers, said
):
    reference = open_model(str(tiny_reference))
    target = inherit(reference, [0, 3], tmp_path / "target")
    with pytest.raises(RecipeError) as raised:
        grow(target, reference, layers, tmp_path / "grown")
    assert re.search(said, f"{raised.value.message}\n{raised.value.hint}")


def test_a_record_that_is_of_another_target_is_refused(tiny_reference, tmp_path):
    reference = open_model(str(tiny_reference))
    target = inherit(reference, [0, 3], tmp_path / "target")
    record = json.loads((target.path / "inherit.json").read_text())
    (target.path / "inherit.json").write_text(json.dumps(record | {"layer_map": [0, 1, 3]}))
    with pytest.raises(SourceError, match="but the model has 2 layers"):
        grow(target, reference, [0, 1, 2, 3], tmp_path / "grown")


def test_a_target_without_a_record_is_never_taken_for_the_first_layers(tiny_reference, tmp_path):
    start = inherit(open_model(str(tiny_reference)), "last:2", tmp_path / "start")
    trained = train(start.path, tmp_path / "trained")
    (trained.path / "inherit.json").unlink()
    models = (trained.path, tiny_reference)
    out, quiet = tmp_path / "out", {"progress": False}
    for call in (inheritune.grow, inheritune.patch):
        with pytest.raises(SourceError, match="nothing says which layers of") as raised:
            call(*models, 3 if call is inheritune.grow else [1], out, **quiet)
        assert "target_layers" in raised.value.hint and "last:2" in raised.value.hint
    with pytest.raises(SourceError, match="nothing says which layers of"):
        inheritune.family(*models, **quiet)
    with pytest.raises(RecipeError, match="keeps 3 layers, not 2"):
        inheritune.grow(*models, [0, 1, 2, 3], out, target_layers="0-2", **quiet)
    assert not out.exists()
    # The way out: they are stated.
    grown = inheritune.grow(*models, [1, 2, 3], out, target_layers="last:2", **quiet)
    after, before = tensors_of(grown.path), tensors_of(trained.path)
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert torch.equal(after[name.format(1)], before[name.format(0)])
    assert torch.equal(after[name.format(2)], before[name.format(1)])
    assert torch.equal(after[name.format(0)], tensors_of(tiny_reference)[name.format(1)])
    patched = inheritune.patch(*models, [1], tmp_path / "patched", target_layers=[2, 3], **quiet)
    assert json.loads((patched.path / "inherit.json").read_text())["layer_map"] == [1, 2, 3]


def test_stated_layers_must_be_those_of_the_record(tiny_reference, tmp_path):
    target = inherit(open_model(str(tiny_reference)), [0, 3], tmp_path / "target")
    with pytest.raises(RecipeError, match="says that it has layers 0, 3, not layers 0-1"):
        inheritune.grow(
            target, tiny_reference, 3, tmp_path / "out", target_layers=2, progress=False
        )


def test_first_layers_as_they_were_need_no_record(tiny_reference, tmp_path):
    cut = inherit(open_model(str(tiny_reference)), 2, tmp_path / "cut")
    (cut.path / "inherit.json").unlink()
    grown = inheritune.grow(cut, tiny_reference, 3, tmp_path / "grown", progress=False)
    whole = tensors_of(tiny_reference)
    assert all(torch.equal(tensor, whole[n]) for n, tensor in tensors_of(grown.path).items())
