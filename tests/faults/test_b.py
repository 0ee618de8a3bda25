"""Group B of the battery: the reference model. Each name starts with its id."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from inheritune.checkpoints.source import open_model
from inheritune.errors import InherituneError, SourceError, UnsupportedModelError
from inheritune.inherit.inherit import inherit

INDEX = "model.safetensors.index.json"
OPENED: list[str] = []


def _watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)


@pytest.fixture
def opened():
    """Files that the last `refused` opened."""
    return OPENED


@pytest.fixture
def sharded(tmp_path):
    return tiny_models.save("llama", tmp_path / "sharded", shard="40KB")


def change_config(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def change_index(directory, value):
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = value
    (directory / INDEX).write_text(json.dumps(index))


def refused(directory, match, kind=SourceError):
    OPENED.clear()
    with pytest.raises(kind, match=match) as error:
        open_model(str(directory))
    assert error.value.exit_code == 3
    assert len(str(error.value).splitlines()) <= 3
    return error.value


class Hub(BaseHTTPRequestHandler):
    answer = (401, "RepoNotFound")

    def do_GET(self):
        status, code = self.answer
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"the Hub's own words on {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


def ask_hub(tmp_path, model, **environment):
    program = (
        "import sys\n"
        "from inheritune.checkpoints.source import open_model\n"
        "from inheritune.errors import InherituneError\n"
        "try:\n"
        f"    open_model({model!r})\n"
        "except InherituneError as error:\n"
        "    print(error); sys.exit(error.exit_code)\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=kept | {"HF_HOME": str(tmp_path / "hf")} | environment,
    )


@pytest.mark.parametrize(
    "status, code, words, exit_code",
    [
        (401, "RepoNotFound", "the Hub has no someone/model", 3),
        (403, "GatedRepo", "someone/model is gated", 3),
        (404, "RevisionNotFound", "has no revision", 3),
    ],
)
def test_b1_hub_says_no(tmp_path, monkeypatch, status, code, words, exit_code):
    monkeypatch.setattr(Hub, "answer", (status, code))
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = ask_hub(
            tmp_path, "someone/model", HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert words in done.stdout


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_b1_hub_not_reached(tmp_path, environment):
    done = ask_hub(tmp_path, "someone/model", **environment)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "cannot get someone/model from the Hub" in done.stdout


def test_b2_index_points_outside(sharded, opened):
    shutil.copyfile(next(sharded.glob("*.safetensors")), sharded.parent / "outside.safetensors")
    change_index(sharded, "../outside.safetensors")
    refused(sharded, r"\.\./outside\.safetensors")
    assert any("index.json" in name for name in opened)
    assert not any(name.endswith(".safetensors") for name in opened)


@pytest.mark.parametrize(
    "value",
    [
        *("/etc/passwd", "/tmp/x.safetensors", "C:\\x.safetensors", "C:x.safetensors"),
        *("\\\\srv\\s.safetensors", "a/../../b.safetensors", "a/b.safetensors", "", ".", ".."),
        *(".safetensors/..", "a\x00.safetensors", "a\n.safetensors", 5, None, ["a.safetensors"]),
    ],
)
def test_b3_index_value_is_no_plain_name(sharded, opened, value):
    change_index(sharded, value)
    refused(sharded, "weight file")
    assert not any(name.endswith(".safetensors") for name in opened)


def test_b4_index_points_to_a_pickle(sharded):
    (sharded / "pytorch_model.bin").write_bytes(b"\x80\x02")
    change_index(sharded, "pytorch_model.bin")
    refused(sharded, r"pytorch_model\.bin")


def test_b5_shard_is_a_link_out_of_the_directory(sharded, opened):
    shard = next(sharded.glob("*.safetensors"))
    outside = shutil.move(shard, sharded.parent / "outside.safetensors")
    shard.symlink_to(outside)
    refused(sharded, "leads out of its directory")
    assert not any("outside" in name for name in opened)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_b5_other_file_is_a_link_out_of_the_directory(reference, name):
    outside = shutil.move(reference / name, reference.parent / "outside.json")
    (reference / name).symlink_to(outside)
    refused(reference, "leads out of its directory")


def test_b5_links_in_a_circle_and_pipes(reference):
    weights = reference / "model.safetensors"
    weights.unlink()
    weights.symlink_to(weights)
    refused(reference, "link to nothing|neither")
    weights.unlink()
    os.mkfifo(weights)
    refused(reference, "not a regular file")


class Pwned:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def test_b6_only_a_pickle_is_there(reference, tmp_path, opened):
    import pickle

    (reference / "model.safetensors").unlink()
    evil = pickle.dumps(Pwned(tmp_path / "PWNED"))
    (reference / "pytorch_model.bin").write_bytes(evil)
    error = refused(reference, "safetensors only", UnsupportedModelError)
    assert "convert" in error.hint
    assert not (tmp_path / "PWNED").exists()
    assert not any("pytorch_model" in name for name in opened)
    (reference / "model.safetensors").write_bytes(evil)
    refused(reference, "safetensors")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("model_type", ["unheard_of", "llama"])
def test_b7_remote_code_is_copied_and_never_run(reference, tmp_path, model_type):
    code = f"open({str(tmp_path / 'PWNED')!r}, 'w')\nclass X: pass\n"
    (reference / "modeling_x.py").write_text(code)
    names = {f"Auto{kind}": "modeling_x.X" for kind in ("Config", "Model", "ModelForCausalLM")}
    change_config(reference, model_type=model_type, architectures=["X"], auto_map=names)
    target = inherit(open_model(str(reference)), 2, tmp_path / "out").path
    assert (target / "modeling_x.py").read_text() == code
    assert not (tmp_path / "PWNED").exists()
    check = json.loads((target / "inherit.json").read_text())["check"]
    expected = "complete: LlamaForCausalLM" if model_type == "llama" else "not checked: "
    assert check.startswith(expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": "evil/k"},
        {"_attn_implementation": "evil/k:sub"},
        {"experts_implementation": {"": "evil/k"}},
        {"text_config": {"_attn_implementation_internal": "evil/kernel"}},
        {"anything": [{"attn_implementation": "evil/k"}]},
        {"__class__": "evil"},
    ],
)
def test_b8_config_names_a_kernel_repository(reference, fields):
    change_config(reference, **fields)
    refused(reference, "unknown key '_|code from elsewhere: .*evil/k")


def test_b8_honest_underscores_are_fine(reference):
    change_config(reference, _name_or_path="a/b", _attn_implementation="sdpa")
    assert open_model(str(reference)).layers == 4


def test_b9_config_asks_to_be_trusted(reference):
    change_config(reference, trust_remote_code=True)
    with pytest.warns(UserWarning, match="trust_remote_code: ignored"):
        assert open_model(str(reference)).layers == 4


HOSTILE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}{% endfor %}"


def test_b10_hostile_template_is_copied_as_bytes(reference, tmp_path):
    (reference / "chat_template.jinja").write_text(HOSTILE)
    target = inherit(open_model(str(reference)), 2, tmp_path / "out").path
    assert (target / "chat_template.jinja").read_text() == HOSTILE


def test_b11_huge_template_is_never_rendered(reference, tmp_path):
    (reference / "chat_template.jinja").write_text(HOSTILE + "x" * 50_000_000)
    target = inherit(open_model(str(reference)), 2, tmp_path / "out").path
    assert (target / "chat_template.jinja").stat().st_size == 50_000_000 + len(HOSTILE)


@pytest.mark.parametrize(
    "text",
    [
        b'{"model_type": "lla',
        b'{"num_hidden_layers": NaN}',
        b'{"num_hidden_layers": 1e999}',
        b'{"num_hidden_layers": 4, "num_hidden_layers": 5}',
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"[]",
        b"null",
        b"",
        b"\xff\xfe{}",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_b12_config_is_broken(reference, text):
    (reference / "config.json").write_bytes(text)
    refused(reference, r"config\.json")


def test_b12_config_is_huge(reference):
    with (reference / "config.json").open("wb") as file:
        file.truncate(500_000_000)
    refused(reference, "larger than")


def test_b13_config_and_weights_disagree_on_the_layers(reference):
    change_config(reference, num_hidden_layers=6)
    refused(reference, r"says 6 layers, but the weights hold 0-3 .*missing: 4-5")
    change_config(reference, num_hidden_layers=3)
    refused(reference, r"says 3 layers, but the weights also hold 3")
    change_config(reference, num_hidden_layers=10**15)
    refused(reference, "cannot be")


def test_b14_per_layer_lists_are_consistent_in_a_fresh_process(tiny_model, tmp_path):
    for family in ("smollm3", "olmo3", "gemma3", "qwen3", "gpt-neo"):
        inherit(open_model(str(tiny_model(family))), 3, tmp_path / family)
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from transformers import AutoModelForCausalLM\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)\n"
        "    assert not any(info.values()), (path, info)\n"
        "    assert torch.isfinite(model(torch.arange(20)[None]).logits).all(), path\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_b15_ties_are_preserved_and_wrong_ones_refused(tiny_model, tmp_path):
    copies = {f: shutil.copytree(tiny_model(f), tmp_path / f) for f in ("llama", "llama-tied")}
    change_config(copies["llama-tied"], tie_word_embeddings=False)
    with pytest.raises(SourceError, match=r"at random, such as lm_head\.weight"):
        inherit(open_model(str(copies["llama-tied"])), 2, tmp_path / "wrong")
    for family, tied in (("llama", False), ("llama-tied", True)):
        target = inherit(open_model(str(tiny_model(family))), 2, tmp_path / f"{family}-out")
        assert ("lm_head.weight" in target.tensors) is not tied
        assert target.config["tie_word_embeddings"] is tied


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 1000) + b"{}",
        struct.pack("<Q", 101_000_000) + b"{" + b" " * 1000,
        struct.pack("<Q", 8) + b"not json",
        struct.pack("<Q", 8) + b"{not js}",
        struct.pack("<Q", 8) + b'{"\xff\xff":{}',
    ],
    ids=lambda content: repr(content[:10]),
)
def test_b16_header_is_broken(reference, content):
    (reference / "model.safetensors").write_bytes(content)
    refused(reference, r"model\.safetensors")


def with_header(directory, change):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = change(content[8 : 8 + length])
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    "field, value",
    [
        ("data_offsets", [0, 2**40]),
        ("data_offsets", [0, 128]),
        ("data_offsets", [-128, 0]),
        ("data_offsets", [128, 0]),
        ("shape", [33]),
        ("shape", [-32]),
        ("shape", [2**62, 2**62]),
        ("dtype", "F31"),
    ],
)
def test_b17_header_lies(reference, field, value):
    def lie(text):
        header = json.loads(text)
        header["model.norm.weight"][field] = value
        return json.dumps(header).encode()

    with_header(reference, lie)
    refused(reference, r"model\.safetensors.*model\.norm\.weight|tensor")


def test_b17_bytes_after_the_last_tensor(reference):
    with (reference / "model.safetensors").open("ab") as file:
        file.write(b"x")
    refused(reference, "1 bytes after")


def test_b18_a_tensor_twice_in_a_header(reference):
    def twice(text):
        entry = json.dumps(json.loads(text)["model.norm.weight"]).encode()
        return text.rstrip().removesuffix(b"}") + b',"model.norm.weight":' + entry + b"}"

    with_header(reference, twice)
    refused(reference, r"'model\.norm\.weight' stands twice")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\n\n<html>", "HTML"),
        (gzip.compress(b"weights" * 100), "gzip"),
        (b"PK\x03\x04" + b"\x00" * 100, "zip"),
        (b"GGUF" + b"\x03" * 100, "GGUF"),
        (b"\x00" * 10_000, "zeros"),
    ],
    ids=["lfs", "html", "html later", "gzip", "zip", "gguf", "zeros"],
)
def test_b19_something_else_under_the_name_of_weights(reference, content, words):
    (reference / "model.safetensors").write_bytes(content)
    assert words in str(refused(reference, "model.safetensors"))


@pytest.mark.parametrize("lost", [1, None])
def test_b20_shard_is_short(sharded, lost):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - (lost or shard.stat().st_size // 2))
    refused(sharded, shard.name)


def test_b21_shard_missing_or_holding_other_tensors(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    held, other = load_file(first), load_file(second)
    name = next(iter(held))
    save_file(held | {"more": torch.ones(1)}, first)
    refused(sharded, "'more', which .* does not place there")
    save_file({k: v for k, v in held.items() if k != name} or {"x": torch.ones(1)}, first)
    refused(sharded, "it does not|does not place")
    save_file(held, first)
    save_file(other | {name: held[name]}, second)
    refused(sharded, "is in two files")
    save_file(other, second)
    assert open_model(str(sharded)).layers == 4
    second.unlink()
    refused(sharded, second.name)


QUANTISED = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"quantization_config": QUANTISED}, "quantised"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "blt"}, "five stacks"),
        ({"model_type": "zamba2"}, "zamba2"),
        ({"model_type": "xlm"}, "parallel lists"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "hrm_text"}, "loop"),
        ({"model_type": "gemma4_assistant"}, "another model"),
    ],
)
def test_b23_model_is_of_a_kind_that_is_refused(reference, fields, words):
    change_config(reference, **fields)
    assert "not supported" in str(refused(reference, words, UnsupportedModelError))


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("model.layers.0.self_attn.q_proj.qweight", torch.ones(2, dtype=torch.int32)),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", torch.ones(2)),
        ("model.layers.0.extra", torch.ones(2).to(torch.float8_e4m3fn)),
    ],
)
def test_b23_tensors_are_quantised(reference, name, tensor):
    held = load_file(reference / "model.safetensors") | {name: tensor}
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    refused(reference, "quantised", UnsupportedModelError)


@pytest.mark.parametrize(
    "files, words",
    [
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA"),
        (["model.Q4_K_M.gguf"], "GGUF"),
        (["pytorch_model.pt"], "safetensors only"),
        ([], "neither"),
    ],
)
def test_b23_directory_is_of_a_kind_that_is_refused(reference, files, words):
    (reference / "model.safetensors").unlink()
    for name in files:
        (reference / name).write_bytes(b"x")
    assert refused(reference, words).hint


def test_b24_padded_embedding_is_kept(tmp_path):
    tiny_models.train_tokenizer(tmp_path / "reference")
    model = tiny_models.build("llama", vocab_size=448)
    model.save_pretrained(tmp_path / "reference")
    target = inherit(open_model(str(tmp_path / "reference")), 2, tmp_path / "out")
    assert target.tensors["model.embed_tokens.weight"].shape == (448, 32)
    assert target.tensors["lm_head.weight"].shape == (448, 32)


def test_b26_read_only_directory(reference, tmp_path):
    before = sorted(p.name for p in reference.iterdir())
    for path in (*reference.iterdir(), reference):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        inherit(open_model(str(reference)), 2, tmp_path / "out")
        assert sorted(p.name for p in reference.iterdir()) == before
    finally:
        reference.chmod(0o755)


def test_b27_file_is_truncated_after_its_header_was_read(reference, tmp_path):
    model = open_model(str(reference))
    os.truncate(reference / "model.safetensors", 20_000)
    with pytest.raises(InherituneError, match=r"model\.safetensors ended at byte") as error:
        inherit(model, 2, tmp_path / "out")
    assert error.value.exit_code == 3
    assert [p.name for p in Path(tmp_path).iterdir()] == ["reference"]
