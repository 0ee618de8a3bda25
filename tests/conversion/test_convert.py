import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inheritune.conversion import convert as convert_module
from inheritune.conversion.convert import convert
from inheritune.conversion.pytorch_files import find_pytorch_files
from inheritune.errors import MachineError, RecipeError, SourceError
from inheritune.model_files.directory import open_model

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def refused(source, match, kind=SourceError):
    """Not converted, in at most three lines, and nothing left behind."""
    out = source.parent / "out"
    with pytest.raises(kind, match=match) as error:
        convert(source, out)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.exit_code == {SourceError: 3, RecipeError: 2, MachineError: 4}[kind]
    assert [path.name for path in source.parent.iterdir()] == [source.name]
    return error.value


def change_config(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    config = {k: v for k, v in (config | fields).items() if v is not None}
    (directory / "config.json").write_text(json.dumps(config))


def change_weights(directory, change):
    state = torch.load(directory / SINGLE, weights_only=True)
    change(state)
    torch.save(state, directory / SINGLE)


def written(directory):
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("family", "shards"),
    [
        ("llama-tied", 1),
        ("gpt2", 3),
        pytest.param("llama", 1, marks=pytest.mark.slow),
        pytest.param("llama", 3, marks=pytest.mark.slow),
    ],
)
def test_a_converted_model_is_the_same_to_transformers_bit_for_bit(
    pickled, tmp_path, family, shards
):
    source = pickled(family, shards)
    result = convert(source, tmp_path / "out")
    expected = tiny_models.build(family).state_dict()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert result.check.startswith("complete: ")
    assert result.warnings == [] and all(result.confinement.values())
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").exists() == (shards == 1)


@pytest.mark.slow
def test_two_conversions_give_the_same_bytes(pickled, tmp_path):
    source = pickled("llama-tied", 3)
    (source / "LICENSE").write_text("mine")
    convert(source, tmp_path / "first")
    convert(source, tmp_path / "second")
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "second")
    assert first["LICENSE"] == b"mine"
    assert len([name for name in first if name.endswith(".safetensors")]) == 3


def test_the_record_says_where_all_came_from(pickled, tmp_path):
    source = pickled("gpt2")
    result = convert(source, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "convert.json").read_text())
    data = (source / SINGLE).read_bytes()
    assert record["source"] == {
        "name": "gpt2",
        "files": [{"name": SINGLE, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}],
    }
    assert record["torch"] == torch.__version__
    assert record["dropped"] == dict(result.dropped)
    assert record["confinement"] == dict(result.confinement)
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.slow
def test_files_are_made_with_the_mode_that_the_umask_asks_for(pickled, tmp_path, set_umask):
    set_umask(0o027)
    convert(pickled(), tmp_path / "out")
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}


@pytest.mark.slow
def test_large_models_are_written_in_several_files(pickled, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "MAX_SHARD_BYTES", 50_000)
    source = pickled()
    model = convert(source, tmp_path / "out").model
    assert len(model.metadata) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.size for t in model.tensors.values())
    assert written(tmp_path / "out").keys() == torch.load(source / SINGLE).keys()


@pytest.mark.slow
def test_the_format_of_old_torch_is_read_and_said(pickled, tmp_path):
    source = pickled("llama", legacy=True)
    result = convert(source, tmp_path / "out")
    assert len(result.warnings) == 1 and "torch before 1.6" in result.warnings[0]
    expected = torch.load(source / SINGLE)
    state = written(tmp_path / "out")
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["model.pt", "weights.bin", "x.pth"])
def test_a_lone_file_of_another_name_is_taken_and_trainers_files_are_not(tmp_path, name):
    for other in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", name):
        (tmp_path / other).write_bytes(b"\x80")
    assert find_pytorch_files(tmp_path)[0] == [tmp_path / name]


def test_two_files_that_may_be_the_weights_are_refused(pickled):
    source = pickled()
    (source / SINGLE).rename(source / "a.bin")
    shutil.copy(source / "a.bin", source / "b.bin")
    refused(source, "2 files that may be the weights: a.bin, b.bin")


@pytest.mark.slow
@pytest.mark.parametrize("said", [True, False])
def test_a_tied_head_is_left_out_where_the_config_ties_it(pickled, tmp_path, said):
    source = pickled("llama-tied")
    change_config(source, tie_word_embeddings=said)
    result = convert(source, tmp_path / "out")
    state = written(tmp_path / "out")
    assert (HEAD in state) is (not said)
    assert list(result.dropped) == ([HEAD] if said else [])
    if not said:
        assert torch.equal(state[HEAD], state[EMBEDDING])


@pytest.mark.slow
def test_the_class_says_what_a_config_without_the_key_means(pickled, tmp_path):
    source = pickled("gpt2")
    change_config(source, tie_word_embeddings=None)
    assert "tie_word_embeddings" not in json.loads((source / "config.json").read_text())
    result = convert(source, tmp_path / "out")
    assert list(result.dropped) == [HEAD]
    assert "transformer.wte.weight" in result.dropped[HEAD]


@pytest.mark.slow
def test_a_head_in_another_file_than_its_embedding_is_left_out(pickled, tmp_path):
    source = pickled("llama-tied", 3)
    places = json.loads((source / INDEX).read_text())["weight_map"]
    assert places[HEAD] != places[EMBEDDING]
    assert list(convert(source, tmp_path / "out").dropped) == [HEAD]


@pytest.mark.slow
def test_a_tied_head_that_differs_is_kept_with_a_warning(pickled, tmp_path):
    source = pickled("llama-tied")
    change_weights(source, lambda state: state.update({HEAD: state[HEAD] + 1}))
    result = convert(source, tmp_path / "out")
    assert HEAD in written(tmp_path / "out") and not result.dropped
    assert "it differs" in result.warnings[0]


def test_a_missing_head_is_named(pickled):
    source = pickled()
    change_weights(source, lambda state: state.pop(HEAD))
    refused(source, "not a whole model: .*at random, such as lm_head.weight")


@pytest.mark.slow
def test_left_overs_of_old_files_stay(pickled, tmp_path):
    source = pickled()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(source, lambda state: state.update({name: torch.arange(4.0)}))
    convert(source, tmp_path / "out")
    assert torch.equal(written(tmp_path / "out")[name], torch.arange(4.0))


def test_types_and_shapes_are_kept_as_they_are(pickled, tmp_path):
    source = pickled()
    odd = {
        "a.bool": torch.tensor([True, False, True]),
        "a.scalar": torch.tensor(7),
        "a.empty": torch.empty(0, 3),
        "a.half": torch.arange(5, dtype=torch.float16),
        "a.brain": torch.arange(3, dtype=torch.bfloat16),
        "a.transposed": torch.arange(12.0).reshape(3, 4).T,
        "a.slice": torch.arange(100.0)[10:40:7],
        "a.parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    change_weights(source, lambda state: state.update(odd))
    convert(source, tmp_path / "out")
    state = written(tmp_path / "out")
    for name, value in odd.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value.detach()), name


def test_nan_is_kept_with_a_warning(pickled, tmp_path):
    source = pickled()
    change_weights(source, lambda state: state["model.norm.weight"].fill_(float("nan")))
    result = convert(source, tmp_path / "out")
    assert result.warnings == [
        "NaN or infinity in 1 tensors, such as model.norm.weight: kept as they are."
    ]
    assert written(tmp_path / "out")["model.norm.weight"].isnan().all()


@pytest.mark.parametrize(
    "wrapper",
    ["module", *(pytest.param(x, marks=pytest.mark.slow) for x in ("state_dict", "model"))],
)
def test_a_wrapped_state_is_unwrapped_and_what_stood_beside_it_is_said(pickled, tmp_path, wrapper):
    source = pickled()
    state = torch.load(source / SINGLE)
    torch.save({wrapper: state, "step": 7, "optimizer": {"lr": 0.1}}, source / SINGLE)
    result = convert(source, tmp_path / "out")
    assert written(tmp_path / "out").keys() == state.keys()
    assert sorted(result.dropped) == ["optimizer", "step"]


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "form", "trusting"),
    [
        (os.system, "zip", True),
        pytest.param(os.system, "pickle", False, marks=pytest.mark.slow),
        pytest.param(eval, "zip", False, marks=pytest.mark.slow),
        (eval, "legacy", True),
    ],
)
def test_a_pickle_that_runs_code_runs_none(
    pickled, tmp_path, monkeypatch, function, form, trusting
):
    if trusting:  # torch's own switch to believe everything
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    source = pickled()
    canary = source / "PWNED"
    text = f"touch {canary}" if function is os.system else f"open({str(canary)!r}, 'w')"
    evil = {"model.norm.weight": Calls(function, text)}
    if form == "pickle":
        (source / SINGLE).write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, source / SINGLE, _use_new_zipfile_serialization=form == "zip")
    error = refused(source, SINGLE)
    if form == "zip":
        called = "posix.system" if function is os.system else "eval"
        assert f"calls {called} when it is read" in error.message
        assert "full trust" in error.message and "Nothing of it was run" in error.hint
    assert not canary.exists()


@pytest.mark.parametrize("value", ["../x.bin", "/etc/x.bin", "C:\\x.bin", "", 3, "a\0.bin", "x.so"])
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_opened(pickled, value):
    source = pickled("llama", 3)
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = value
    (source / INDEX).write_text(json.dumps(index))
    refused(source, "only plain names")


def test_a_link_out_of_the_directory_is_refused(pickled, tmp_path):
    source = pickled()
    (source / SINGLE).unlink()
    (source / SINGLE).symlink_to("/etc/passwd")
    refused(source, "leads out of its directory")


@pytest.mark.slow
def test_an_index_that_places_a_tensor_wrongly_is_a_warning(pickled, tmp_path):
    source = pickled("llama", 3)
    index = json.loads((source / INDEX).read_text())
    names = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = next(
        name for name in names if name != index["weight_map"]["model.norm.weight"]
    )
    (source / INDEX).write_text(json.dumps(index))
    done = convert(source, tmp_path / "out")
    assert any("names another file for model.norm.weight" in text for text in done.warnings)


@pytest.mark.slow
def test_a_tensor_in_two_files_is_refused(pickled):
    source = pickled("llama", 3)
    first, second = sorted(source.glob("*.bin"))[:2]
    torch.save(torch.load(second) | {"model.norm.weight": torch.ones(32)}, second)
    torch.save(torch.load(first) | {"model.norm.weight": torch.ones(32)}, first)
    refused(source, "'?model.norm.weight'? is in two files")


def test_a_missing_file_is_named(pickled):
    source = pickled("llama", 3)
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    refused(source, "pytorch_model-00002-of-00003.bin is missing")


@pytest.mark.slow
def test_a_key_that_hashes_for_ever_is_given_up(pickled, monkeypatch):
    """A tuple of itself twice, 60 deep: a few hundred bytes, 2^60 visits."""
    source = pickled()
    nested = b"K\x01\x85" + b"q\x00h\x00\x86" * 60
    (source / SINGLE).write_bytes(_legacy_pickle(b"}" + nested + b"K\x01s."))
    monkeypatch.setattr(convert_module, "_SECONDS", 12)
    refused(source, "pytorch_model.bin had no answer after 12 s: it was stopped")


def _legacy_pickle(value):
    """A file in torch's format before 1.6 whose value is this pickle."""
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    head = pickle.dumps({}, 2)
    before, _, after = file.getvalue().rpartition(head[:2] + b"}q\x00.")
    return before + b"\x80\x02" + value + after


def test_a_truncated_file_is_refused(pickled):
    source = pickled()
    os.truncate(source / SINGLE, (source / SINGLE).stat().st_size - 1)
    refused(source, f"{SINGLE} is cut short or broken")


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "an HTML or XML page"),
        (gzip.compress(b"x" * 100), "gzip data"),
        (_tar(), "a tar archive"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (bytes(1000), "begins with zeros"),
        (b"", "is empty"),
        (b"hello there", "is no PyTorch checkpoint"),
    ],
    ids=["lfs", "html", "gzip", "tar", "gguf", "zeros", "empty", "text"],
)
def test_foreign_files_are_called_by_their_name(pickled, data, match):
    source = pickled()
    (source / SINGLE).write_bytes(data)
    refused(source, match)


def test_a_safetensors_file_with_the_wrong_name_is_recognised(pickled):
    source = pickled()
    save_file({"a": torch.ones(3)}, source / SINGLE)
    refused(source, "a safetensors file")


def test_other_commands_name_this_one(pickled):
    source = pickled()
    with pytest.raises(SourceError) as error:
        open_model(str(source))
    assert f"`inheritune convert {source} OUT`" in error.value.hint


def test_path_without_a_model_directory_is_refused(tmp_path, tiny_reference):
    refused_here = [
        (tmp_path / "nowhere", "there is no model directory"),
        (tiny_reference, "in safetensors already"),
        (tiny_reference / "config.json", "is a file"),
    ]
    for source, match in refused_here:
        with pytest.raises(SourceError, match=match):
            convert(source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no PyTorch weights")


def test_encoders_are_refused_before_anything_is_unpickled(pickled):
    source = pickled()
    change_config(source, model_type="bert")
    (source / SINGLE).write_bytes(b"\x80")
    with pytest.raises(SourceError, match="it is an encoder"):
        convert(source, source.parent / "out")


@pytest.mark.slow
def test_weights_and_not_the_config_say_whether_a_pickle_is_quantised(pickled, tmp_path):
    source = pickled()
    change_config(source, quantization_config={"quant_method": "gptq", "_load_in_4bit": True})
    held = torch.load(source / SINGLE)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.save(held | {name: torch.ones(8, 1, dtype=torch.uint8)}, source / SINGLE)
    refused(source, f"quantised \\({name} of U8\\)")
    torch.save(held, source / SINGLE)
    done = convert(source, tmp_path / "out")
    assert done.warnings[-1] == "the weights are not quantised: quantization_config is left out."
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_a_used_or_inner_directory_is_left_alone(pickled, tmp_path):
    source = pickled()
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(RecipeError, match="already exists"):
        convert(source, out)
    assert contents(out) == {"mine": b"mine"}
    with pytest.raises(RecipeError, match="lies in"):
        convert(source, source / "out")
    assert sorted(path.name for path in source.iterdir()) == ["config.json", SINGLE]


def test_a_full_disk_is_said_and_leaves_nothing(pickled, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = pickled()
    monkeypatch.setattr(convert_module, "copy_side_files", full)
    refused(source, "no space left", MachineError)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_conversion_leaves_nothing_that_stays(pickled, tmp_path):
    source, out = pickled(), tmp_path / "out"
    program = (
        "from pathlib import Path\nfrom inheritune.conversion.convert import convert\n"
        f"convert(Path({str(source)!r}), Path({str(out)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.005)
    child = int(found[0])
    while "landlock" not in _state(child) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_alive(child) and not out.exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".out.tmp-")]
    convert(source, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "out"]


def _state(pid):
    # Once it may gain no new privileges it has asked to die with its parent, too.
    status = Path(f"/proc/{pid}/status").read_text()
    return "landlock" if "NoNewPrivs:\t1" in status else ""


def _is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_converting_loads_no_torch_into_this_process(pickled, tmp_path):
    source = pickled()
    program = (
        "import sys\nfrom pathlib import Path\nfrom inheritune.conversion.convert import convert\n"
        f"convert(Path({str(source)!r}), Path({str(tmp_path / 'out')!r}))\n"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
