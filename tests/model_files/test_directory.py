"""Model directories are opened, or refused with a reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import SourceError
from inheritune.model_files.directory import open_model
from inheritune.model_files.download.hub import is_hub_id


def test_a_model_directory_is_described_without_loading_it(tiny_reference):
    model = open_model(str(tiny_reference))
    held = load_file(tiny_reference / "model.safetensors")
    assert model.layers == 4
    assert model.name == "tiny-reference"
    assert model.tensors.keys() == held.keys()
    assert model.params == sum(t.numel() for t in held.values())
    assert model.container.prefix == "model.layers."
    assert [p.name for p in model.side_files] == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_digest_changes_with_config_and_weights_and_nothing_else(reference):
    before = open_model(str(reference)).digest
    (reference / "README.md").write_text("a card")
    assert open_model(str(reference)).digest == before
    held = load_file(reference / "model.safetensors")
    held["lm_head.weight"][0, 0] += 1
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    changed = open_model(str(reference)).digest
    assert changed != before
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config))
    assert open_model(str(reference)).digest not in {before, changed}


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_the_hub_cache_may_link_into_its_blobs(tiny_reference, tmp_path, shared):
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    blobs = (tmp_path if shared else repository) / "blobs"
    blobs.mkdir()
    for number, path in enumerate(tiny_reference.iterdir()):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert open_model(str(snapshot)).layers == 4


def test_a_link_to_the_model_directory_itself_is_fine(tiny_reference, tmp_path):
    (tmp_path / "link").symlink_to(tiny_reference)
    assert open_model(str(tmp_path / "link")).layers == 4


def test_a_single_file_is_taken_before_an_index_as_transformers_does(reference):
    (reference / "model.safetensors.index.json").write_text("{}")
    with pytest.warns(UserWarning, match="the single file is read"):
        assert open_model(str(reference)).layers == 4


def test_a_target_with_one_layer_knows_its_layers_among_other_lists(reference):
    held = load_file(reference / "model.safetensors")
    held = {n: t for n, t in held.items() if ".layers." not in n or ".layers.0." in n}
    held["model.adapters.0.weight"] = torch.ones(2)
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    config = json.loads((reference / "config.json").read_text()) | {"num_hidden_layers": 1}
    (reference / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="several lists"):
        open_model(str(reference))
    (reference / "inherit.json").write_text(json.dumps({"container": "model.layers."}))
    assert open_model(str(reference)).container.prefix == "model.layers."


@pytest.mark.parametrize(
    "model, match",
    [
        ("/nowhere/at/all", "no model directory"),
        ("./nowhere", "no model directory"),
        ("embedded:other", "embedded:demo"),
        ("embedded:../../x", "embedded:demo"),
        ("a\x00b", "NUL"),
    ],
)
def test_a_name_that_is_no_model_is_refused(model, match):
    with pytest.raises(SourceError, match=match):
        open_model(model)


def test_a_file_is_not_a_model_directory(tiny_reference, monkeypatch):
    monkeypatch.chdir(tiny_reference)
    for name in ("config.json", str(Path.cwd() / "config.json")):
        with pytest.raises(SourceError):
            open_model(name)


def test_a_revision_of_a_directory_is_a_warning(tiny_reference):
    with pytest.warns(UserWarning, match="revision is ignored"):
        open_model(str(tiny_reference), "main")


@pytest.mark.parametrize("text", ["gpt2", "openai-community/gpt2", "a/b.c_d-e"])
def test_hub_ids_are_recognised(text):
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["", "/a", "a/b/c", "../a", "a..b", "a b", "~/x", "C:\\x", "a/"])
def test_paths_are_no_hub_ids(text):
    assert not is_hub_id(text)
