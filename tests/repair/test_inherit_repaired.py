"""A repaired cut on disk: what is written, recorded and proven, and what is refused."""

import json
import os
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import inheritune
from inheritune.cli.app import app
from inheritune.data.calibration import text_ids
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import (
    DataError,
    MachineError,
    RecipeError,
    SourceError,
    UnsupportedModelError,
)
from inheritune.model_files.directory import open_model
from inheritune.recipe.data import Data
from inheritune.repair.inherit import Calibration, calibration_of_text, inherit_repaired
from inheritune.repair.repair import repair_layers
from inheritune.surgery.cut import Options
from inheritune.training.models import load_model

WINDOWS = np.random.default_rng(0).integers(1, 320, (20, 24))
CALIBRATION = Calibration("sequential", WINDOWS, "numbers")
PATH = "transformer.h.1.mlp.c_proj"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A GPT-2 of 4 layers with a tokenizer."""
    return tiny_models.tiny_reference(tmp_path_factory.mktemp("gpt2") / "gpt2", "gpt2")


def record_of(target: Path) -> dict:
    return json.loads((target / "inherit.json").read_text())


def findings(target: Path, reference: Path | None) -> dict[str, str]:
    done = inheritune.verify(target, reference, progress=False)
    return {finding.part: finding.text for finding in done.findings}


def test_the_files_hold_the_repaired_weights_and_the_rest_bit_for_bit(gpt2, tmp_path):
    out = tmp_path / "out"
    target = inherit_repaired(open_model(str(gpt2)), "0,1,3", out, CALIBRATION).target
    model = load_model(gpt2)
    result = repair_layers(model, 4, [0, 1, 3], WINDOWS, "sequential")
    expected = model.state_dict()
    stored, source = load_file(out / "model.safetensors"), load_file(gpt2 / "model.safetensors")
    layers = result.layers
    repaired = {f"transformer.h.{one.place}.{name}" for one in layers for name in one.parameters}
    assert f"{PATH}.bias" in repaired
    for name, value in stored.items():
        origin = name.replace("h.2.", "h.3.")
        assert torch.equal(value, expected[origin]), name
        assert torch.equal(value, source[origin]) == (name not in repaired), name
    assert [*target.tensors] == [*open_model(str(out)).tensors]
    record = record_of(out)
    layers = record["repair"]["layers"]
    assert {name for layer in layers for name in layer["tensors"]} == repaired
    assert [(one["layer"], one["reference_layer"]) for one in layers] == [(1, 1), (2, 3)]
    assert record["repair"]["tokens"] == 20 * 24 and record["repair"]["method"] == "sequential"
    assert record["repair"]["ridge"] == result.ridge
    trials = [(one["ridge"], one["kl"]) for one in record["repair"]["trials"]]
    assert trials == [(trial.ridge, trial.kl) for trial in result.trials]
    assert record["fresh_tensors"] == [] and record["seed"] is None
    # A stock model, as transformers loads it.
    assert type(target.load()).__name__ == "GPT2LMHeadModel"
    assert "repaired" in (out / "README.md").read_text()


def test_the_same_repair_gives_the_same_bytes(gpt2, tmp_path):
    for name in ("one", "two"):
        inherit_repaired(open_model(str(gpt2)), "0,1,3", tmp_path / name, CALIBRATION)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]  # no scratch is left


def test_a_repaired_cut_goes_where_a_directory_is_missing_as_any_cut_does(gpt2, tmp_path):
    out = tmp_path / "not" / "there"
    inherit_repaired(open_model(str(gpt2)), 2, out, CALIBRATION)
    assert record_of(out)["repair"]["layers"]
    assert [path.name for path in out.parent.iterdir()] == ["there"]


def test_verify_proves_all_other_tensors_and_the_digests_of_these(gpt2, tmp_path):
    out = tmp_path / "out"
    inherit_repaired(open_model(str(gpt2)), "0,1,3", out, CALIBRATION)
    proofs = findings(out, gpt2)
    assert proofs["bytes"].endswith("bit for bit; 4 were repaired, as recorded")
    assert "not fitted again: " in proofs["repair"]  # its text is no file
    assert proofs["function"].startswith("the outputs of a layer equal the reference's")
    # --- one bit of a repaired tensor ---
    file = out / "model.safetensors"
    tensor, data = open_model(str(out)).tensors[f"{PATH}.weight"], bytearray(file.read_bytes())
    data[tensor.offset] ^= 1
    file.write_bytes(data)
    with pytest.raises(SourceError, match=rf"{PATH}.weight has the xxh3 digest"):
        findings(out, gpt2)


def test_verify_fits_the_first_repaired_layer_again(gpt2, tiny_text, tmp_path):
    out, path = tmp_path / "out", tmp_path / "out" / "inherit.json"
    reference = open_model(str(gpt2))
    calibration = calibration_of_text(reference, "sequential", Data(source=str(tiny_text)), 1000)
    inherit_repaired(reference, "0,1,3", out, calibration)
    proofs = inheritune.verify(out, gpt2, progress=False)
    repair = next(finding for finding in proofs.findings if finding.part == "repair")
    text = "layer 1 fitted again on 896 tokens, as stored; 1 more by their digests alone"
    assert (repair.text, repair.proven) == (text, True)
    # --- another ridge than the one that it was fitted with ---
    record, written = record_of(out), path.read_text()
    ridge = record["repair"]["ridge"]
    path.write_text(json.dumps(record | {"repair": record["repair"] | {"ridge": ridge * 100}}))
    with pytest.raises(SourceError, match=rf"{PATH}\.weight is not what sequential gives"):
        findings(out, gpt2)
    # --- a record without what it takes, and a text that is another one now ---
    for broken in ({"seed": None}, {"ridge": "0.1"}, {"ridge": -1.0}, {"method": "magic"}):
        path.write_text(json.dumps(record | {"repair": record["repair"] | broken}))
        with pytest.raises(SourceError, match="holds a garbled repair"):
            findings(out, gpt2)
    path.write_text(written.replace(record["repair"]["ids_sha256"], "0" * 64))
    assert "gives other windows than those" in findings(out, gpt2)["repair"]
    # --- a text of the Hub is not fetched for a record that a stranger may have written ---
    elsewhere = record["repair"] | {"source": "owner/name"}
    path.write_text(json.dumps(record | {"repair": elsewhere}))
    assert "its text owner/name is not on this machine" in findings(out, gpt2)["repair"]
    path.write_text(written)
    assert findings(out, None)["repair"].endswith("not fitted again: name the reference")


@pytest.fixture
def repaired_on_text(gpt2, tiny_text, tmp_path) -> Path:
    """The first two layers, repaired on a text that can be read again."""
    reference = open_model(str(gpt2))
    calibration = calibration_of_text(reference, "sequential", Data(source=str(tiny_text)), 1000)
    inherit_repaired(reference, 2, tmp_path / "cut" / "out", calibration)
    return tmp_path / "cut" / "out"


def test_verify_keeps_hidden_states_beside_the_target(gpt2, repaired_on_text, monkeypatch):
    """The system's temporary files may be memory."""
    real, folders = tempfile.TemporaryFile, []

    def made(*given, dir=None, **options):
        folders.append(dir)
        return real(*given, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    assert "fitted again on" in findings(repaired_on_text, gpt2)["repair"]
    assert set(folders) == {repaired_on_text.parent}
    # --- where nothing can be written there, the target is proven all the same ---
    folders.clear()
    monkeypatch.setattr(os, "access", lambda path, mode: path != repaired_on_text.parent)
    assert "fitted again on" in findings(repaired_on_text, gpt2)["repair"]
    assert set(folders) == {Path(tempfile.gettempdir())}


def test_verify_names_the_place_of_a_disk_that_is_full(gpt2, repaired_on_text):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(MachineError) as error:
            findings(repaired_on_text, gpt2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.message.startswith(f"cannot write {repaired_on_text.parent}: ")
    assert str(error.value.hint).startswith("Free some space")


def test_verify_tells_another_text_from_windows_that_an_earlier_version_drew(
    gpt2, repaired_on_text, tiny_tokens, tmp_path
):
    path = repaired_on_text / "inherit.json"
    written, record = path.read_text(), record_of(repaired_on_text)
    path.write_text(written.replace(record["repair"]["ids_sha256"], "0" * 64))
    said = findings(repaired_on_text, gpt2)["repair"]
    assert "it is another text, or an earlier version of inheritune drew other windows" in said
    # --- in its run, whose tokens are those of the record: it is the same text ---
    repair = record["repair"] | {"source": tiny_tokens.fingerprint, "ids_sha256": "0" * 64}
    path.write_text(json.dumps(record | {"repair": repair}))
    shutil.copytree(tiny_tokens.path, repaired_on_text.parent / "tokens")
    said = findings(repaired_on_text, gpt2)["repair"]
    assert "the tokens of its run are as they were; an earlier version" in said


def test_verify_reads_a_text_again_by_its_keys(gpt2, tmp_path):
    (tmp_path / "one.csv").write_text(
        "id,story\n" + "".join(f"{i},{'a b c ' * 9}{i}\n" for i in range(99))
    )
    (tmp_path / "two.txt").write_text("another text, " * 6000)
    reference, out = open_model(str(gpt2)), tmp_path / "out"
    sources = [
        {"source": str(tmp_path / "one.csv"), "text_column": "story"},
        {"source": str(tmp_path / "two.txt")},
    ]
    text = Data.model_validate({"source": sources})
    calibration = calibration_of_text(reference, "sequential", text, 300)
    inherit_repaired(reference, "0,1,3", out, calibration)
    assert "layer 1 fitted again on" in findings(out, gpt2)["repair"]
    assert len(text_ids(text, open_tokenizer(gpt2), 10**9)) > 64 * 300  # not all of it is read
    # --- a text of the Hub among them is not fetched ---
    record = record_of(out)
    record["repair"]["text"]["source"][1]["source"] = "owner/name"
    (out / "inherit.json").write_text(json.dumps(record))
    assert "is not on this machine" in findings(out, gpt2)["repair"]
    record["repair"]["text"] = {"sauce": "a"}
    (out / "inherit.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match="holds a garbled repair"):
        findings(out, gpt2)


def test_a_record_that_calls_an_inherited_tensor_repaired_is_refused(gpt2, tmp_path):
    out = tmp_path / "out"
    inherit_repaired(open_model(str(gpt2)), "0,1,3", out, CALIBRATION)
    record = record_of(out)
    record["repair"]["layers"][0]["tensors"].append("transformer.wte.weight")
    (out / "inherit.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match=r"calls transformer\.wte\.weight repaired"):
        findings(out, gpt2)
    record["repair"]["layers"] = 3
    (out / "inherit.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match="holds repair"):
        findings(out, gpt2)


@pytest.mark.parametrize("family", ["llama-tied", "opt", "gpt-neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_repaired_model_has_the_dtype_of_its_reference(tmp_path, family, dtype):
    reference = tiny_models.save(family, tmp_path / family, dtype)
    out = tmp_path / "out"
    inherit_repaired(open_model(str(reference)), 2, out, CALIBRATION)
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {dtype}
    assert "bit for bit" in findings(out, reference)["bytes"]


def test_a_repair_is_stored_in_the_dtype_that_the_cut_is_cast_to(gpt2, tmp_path):
    out = tmp_path / "out"
    options = Options(dtype="bf16")
    inherit_repaired(open_model(str(gpt2)), 2, out, CALIBRATION, options)
    model = load_model(gpt2)
    repair_layers(model, 4, [0, 1], WINDOWS, "sequential", stored_dtype=lambda *_: torch.bfloat16)
    stored = load_file(out / "model.safetensors")[f"{PATH}.weight"]
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored.float(), model.state_dict()[f"{PATH}.weight"])


def test_names_on_disk_without_the_class_prefix_are_found(gpt2, tmp_path):
    """As files of GPT-2 on the Hub are: `h.1.mlp`, not `transformer.h.1.mlp`."""
    from safetensors.torch import save_file

    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (old / name).write_bytes((gpt2 / name).read_bytes())
    weights = load_file(gpt2 / "model.safetensors")
    names = {n: n.removeprefix("transformer.") for n in weights}
    save_file({names[n]: v for n, v in weights.items()}, old / "model.safetensors")
    inherit_repaired(open_model(str(old)), 2, tmp_path / "out", CALIBRATION)
    tensors = record_of(tmp_path / "out")["repair"]["layers"][0]["tensors"]
    assert tensors == ["h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.bias"]


# --- refused before anything is written ---


def test_impossible_repairs_are_refused(gpt2, tmp_path):
    reference, out = open_model(str(gpt2)), tmp_path / "out"
    with pytest.raises(RecipeError, match="unknown repair 'cubic'"):
        inherit_repaired(reference, 2, out, Calibration("cubic", WINDOWS, ""))
    with pytest.raises(RecipeError, match="leaves weights fresh"):
        inherit_repaired(reference, 2, out, CALIBRATION, Options(parts="mlp"))
    with pytest.raises(UnsupportedModelError, match="this gap is at the beginning"):
        inherit_repaired(reference, "last:2", out, Calibration("linear", WINDOWS, ""))
    gemma = tiny_models.save("gemma3", tmp_path / "gemma3")
    with pytest.raises(UnsupportedModelError, match="no projection"):
        inherit_repaired(open_model(str(gemma)), 6, out, CALIBRATION)
    assert [path.name for path in tmp_path.iterdir()] == ["gemma3"]


def test_a_repaired_target_does_not_grow(gpt2, tmp_path):
    inherit_repaired(open_model(str(gpt2)), 2, tmp_path / "out", CALIBRATION)
    with pytest.raises(UnsupportedModelError, match="was repaired to do without"):
        inheritune.grow(tmp_path / "out", gpt2, 3, tmp_path / "grown", progress=False)


def test_a_target_whose_repair_changed_nothing_grows(gpt2, tmp_path):
    inherit_repaired(open_model(str(gpt2)), 2, tmp_path / "out", CALIBRATION)
    path = tmp_path / "out" / "inherit.json"
    record = json.loads(path.read_text())
    record["repair"] |= {"layers": [{"layer": 1, "tensors": [], "ridge": None}]}
    path.write_text(json.dumps(record))
    grown = inheritune.grow(tmp_path / "out", gpt2, 3, tmp_path / "grown", progress=False)
    assert grown.layers == 3


# --- the command and the function ---


def invoke(*words: object):
    return CliRunner().invoke(app, ["inherit", *map(str, words)])


def test_the_command_repairs_on_a_text(gpt2, tiny_text, tmp_path):
    options = ["--repair", "sequential", "--text", tiny_text, "--repair-tokens", "1K"]
    done = invoke(gpt2, 2, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "layer 1: repaired, " in said and "is left on the windows that it was fitted on" in said
    repair = record_of(tmp_path / "out")["repair"]
    kl = {trial["ridge"]: trial["kl"] for trial in repair["trials"]}
    before, after = kl[None], kl[repair["ridge"]]
    assert f"ridge {repair['ridge']:g}: KL {before:.4f} -> {after:.4f} on held-out windows" in said
    assert (repair["method"], repair["tokens"], repair["seq_len"]) == ("sequential", 7 * 128, 128)
    assert repair["source"] == str(tiny_text)
    done = invoke(gpt2, 2, tmp_path / "json", *options, "--json")
    assert json.loads(done.stdout)["repair"] == repair
    target = inheritune.inherit(
        gpt2, 2, tmp_path / "api", repair="sequential", text=tiny_text, repair_tokens=1000,
        progress=False,
    )  # fmt: skip
    assert record_of(target.path) == record_of(tmp_path / "out")


def test_a_repair_without_text_or_with_too_little_is_refused(gpt2, tiny_text, tmp_path):
    done = invoke(gpt2, 2, tmp_path / "out", "--repair", "linear")
    assert done.exit_code == 2 and "needs text to fit on" in done.stderr
    done = invoke(gpt2, 2, tmp_path / "out", "--text", tiny_text)
    assert done.exit_code == 2 and "text is for a repair" in done.stderr
    with pytest.raises(DataError, match="has 71 windows of 128 tokens, 781 are asked") as error:
        inheritune.inherit(
            gpt2, 2, tmp_path / "out", repair="linear", text=tiny_text, repair_tokens="100K",
            progress=False,
        )  # fmt: skip
    assert "ask for" in str(error.value.hint)
    assert not (tmp_path / "out").exists()
