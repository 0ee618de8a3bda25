"""Layers taken from a Hub model: only their bytes are downloaded, and they are the right ones."""

import json

import hub_server
import pytest
import tiny_models
import torch
from hub_server import COMMIT, MODEL, Hub
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import inherit
from inheritune.verification.model import verify_model


@pytest.fixture(params=[None, "40KB"])
def repository(request, tmp_path):
    sizes = {"shard": request.param} if request.param else {}
    return tiny_models.save("llama", tmp_path / "repository", **sizes)


@pytest.fixture
def hub(repository, tmp_path):
    with (
        hub_server.serve(Hub(MODEL, {COMMIT: repository})) as server,
        hub_server.taken_for_the_hub(server, tmp_path / "hf"),
    ):
        yield server


def tensors_of(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_the_first_layers_of_a_hub_model_are_those_of_its_local_copy(hub, repository, tmp_path):
    reference = open_model(MODEL, whole=False)
    before = hub.sent(".safetensors")
    target = inherit(reference, 2, tmp_path / "out")
    kept = sum(tensor.size for tensor in target.tensors.values())
    assert hub.sent(".safetensors") - before <= 1.01 * kept
    local = inherit(open_model(str(repository)), 2, tmp_path / "local")
    ours, theirs = tensors_of(target.path), tensors_of(local.path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    record = json.loads((target.path / "inherit.json").read_text())
    assert record["reference"]["name"] == MODEL
    assert record["reference"]["revision"] == COMMIT


def test_more_layers_later_cost_only_their_own_bytes(hub, tmp_path):
    inherit(open_model(MODEL, whole=False), 2, tmp_path / "two")
    before = hub.sent(".safetensors")
    three = inherit(open_model(MODEL, whole=False), 3, tmp_path / "three")
    third = sum(t.size for t in three.tensors.values() if ".layers.2." in t.name)
    assert third <= hub.sent(".safetensors") - before <= 1.05 * third


def test_a_target_is_proven_against_the_hub_but_for_what_needs_all_layers(hub, tmp_path):
    target = inherit(open_model(MODEL, whole=False), 2, tmp_path / "out")
    findings = {f.part: f for f in verify_model(target, open_model(MODEL, whole=False))}
    assert [part for part, finding in findings.items() if not finding.proven] == ["function"]
    assert findings["function"].text.endswith("the reference is not whole on this machine")


def test_the_command_line_takes_a_hub_id_and_names_its_commit_in_the_next_step(hub, tmp_path):
    result = CliRunner().invoke(app, ["inherit", MODEL, "2", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert f"--reference {MODEL} --revision {COMMIT}" in result.stderr
    command = ["verify", str(tmp_path / "out"), "--reference", MODEL, "--revision", COMMIT]
    assert CliRunner().invoke(app, command).exit_code == 0


def test_nothing_is_downloaded_for_a_cut_that_is_refused(hub, repository, tmp_path):
    lost = "model.layers.0.mlp.up_proj.weight"
    for path in repository.glob("*.safetensors"):
        held = load_file(path)
        if held.pop(lost, None) is not None:
            save_file(held, path, {"format": "pt"})
    index = repository / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        del content["weight_map"][lost]
        index.write_text(json.dumps(content))
    reference = open_model(MODEL, whole=False)
    before = hub.sent(".safetensors")
    result = CliRunner().invoke(app, ["inherit", MODEL, "2", str(tmp_path / "out")])
    assert result.exit_code == 3 and lost in result.stderr
    assert hub.sent(".safetensors") - before < reference.missing_bytes(reference.tensors.values())
    assert not (tmp_path / "out").exists()
