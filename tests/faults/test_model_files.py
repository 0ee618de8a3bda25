"""Inject faults into reference models: indexes, shards, headers, configs, code, the Hub."""

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import hub_server
import pytest
import tiny_models
import torch
from hub_server import COMMIT, MODEL, Hub
from safetensors.torch import load_file, save_file
from sparse_model import write_sparse
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.errors import InherituneError, SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.surgery.class_check.ask_class import ask_class
from inheritune.surgery.cut import inherit
from inheritune.surgery.plan import kept_tensors
from inheritune.training.models import describe, fresh_model, load_model
from inheritune.verification.model import verify_model

INDEX = "model.safetensors.index.json"
# Through the command line, warnings are told, and nothing ends by them.
TOLD = pytest.mark.filterwarnings("default:::inheritune")
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


def run(*arguments):
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_told(result, exit_code, match):
    assert result.exit_code == exit_code, result.output
    error = result.stderr[result.stderr.index("error: ") :]
    assert re.search(match, error), error
    assert len(error.strip().splitlines()) <= 3
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def refused(directory, match, kind=SourceError):
    """Refused by the reader, and by the command line with nothing written anywhere."""
    OPENED.clear()
    started = time.process_time()
    with pytest.raises(kind, match=match) as error:
        open_model(str(directory))
    assert time.process_time() - started < 2
    assert error.value.exit_code == 3
    opened = list(OPENED)
    before = sorted(directory.parent.rglob("*"))
    assert_told(run("inherit", directory, 2, directory.parent / "out"), 3, match)
    assert sorted(directory.parent.rglob("*")) == before
    OPENED[:] = opened
    return error.value


def ask_hub(tmp_path, **environment):
    """The command line in a process of its own: exit code, what it says, seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "inheritune", "inherit", MODEL, "2", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=hub_server.environment(Hub(MODEL, {}), tmp_path / "hf") | environment,
    )
    assert time.monotonic() - started < 15
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert done.stdout == ""
    assert not list(tmp_path.glob("*out*"))
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "refusal, words",
    [
        ((401, "RepoNotFound"), "the Hub has no someone/model: its own words"),  # also: private
        ((403, "GatedRepo"), "someone/model is gated: its own words"),
        ((404, "RevisionNotFound"), "has no revision"),
        ((403, "Forbidden"), "the Hub does not show someone/model to this account"),
    ],
)
@pytest.mark.fault("B1")
def test_the_hub_says_no(tmp_path, refusal, words):
    with hub_server.serve(Hub(MODEL, {}, refusal=refusal)) as hub:
        code, said = ask_hub(tmp_path, HF_ENDPOINT=hub.url)
    assert code == 3
    assert words in said
    assert any(hint in said for hint in ("hf auth login", "Name a branch"))


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline and not cached", "no network"],
)
@pytest.mark.fault("B1")
def test_the_hub_is_not_reached(tmp_path, environment):
    code, said = ask_hub(tmp_path, **environment)
    assert code == 4
    assert "cannot get someone/model from the Hub" in said
    assert "Connect, or name a local model directory." in said


@pytest.mark.fault("B1")
def test_a_network_that_swallows_everything_is_given_up_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Ten seconds if nobody says otherwise, and not tried again.
        code, said = ask_hub(tmp_path, HF_ENDPOINT=url, HF_HUB_ETAG_TIMEOUT="2")
    assert code == 4
    assert "cannot get someone/model from the Hub" in said


@pytest.mark.fault("B2")
def test_index_points_outside(sharded, opened):
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
@pytest.mark.fault("B3")
def test_index_value_is_no_plain_name(sharded, opened, value):
    change_index(sharded, value)
    refused(sharded, "weight file")
    assert not any(name.endswith(".safetensors") for name in opened)


@pytest.mark.fault("B4")
def test_index_points_to_a_pickle(sharded):
    (sharded / "pytorch_model.bin").write_bytes(b"\x80\x02")
    change_index(sharded, "pytorch_model.bin")
    refused(sharded, r"pytorch_model\.bin")


@pytest.mark.fault("B5")
def test_shard_is_a_link_out_of_the_directory(sharded, opened):
    shard = next(sharded.glob("*.safetensors"))
    outside = shutil.move(shard, sharded.parent / "outside.safetensors")
    shard.symlink_to(outside)
    refused(sharded, "leads out of its directory")
    assert not any("outside" in name for name in opened)


@pytest.mark.fault("B5")
def test_links_into_the_cache_of_the_hub_are_fine(reference, tmp_path):
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(reference.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert run("inherit", snapshot, 2, tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "config.json").is_symlink()
    (tmp_path / "other").mkdir()
    outside = (repository / "blobs" / "0").rename(tmp_path / "other" / "0")
    link = next(path for path in snapshot.iterdir() if not path.exists())
    link.unlink()
    link.symlink_to(outside)
    refused(snapshot, "leads out of its directory")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.fault("B5")
def test_other_file_is_a_link_out_of_the_directory(reference, name):
    outside = shutil.move(reference / name, reference.parent / "outside.json")
    (reference / name).symlink_to(outside)
    refused(reference, "leads out of its directory")


@pytest.mark.fault("B5")
def test_links_in_a_circle_and_pipes(reference):
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


@pytest.mark.fault("B6")
def test_only_a_pickle_is_there(reference, tmp_path, opened):
    import pickle

    (reference / "model.safetensors").unlink()
    evil = pickle.dumps(Pwned(tmp_path / "PWNED"))
    (reference / "pytorch_model.bin").write_bytes(evil)
    error = refused(reference, "only safetensors", UnsupportedModelError)
    assert "`inheritune convert " in error.hint
    assert not (tmp_path / "PWNED").exists()
    assert not any("pytorch_model" in name for name in opened)
    (reference / "model.safetensors").write_bytes(evil)
    refused(reference, "safetensors")
    assert not (tmp_path / "PWNED").exists()


def bring_code(directory, model_type):
    """A model whose classes come with it, and leave a mark when they are imported."""
    code = f"open({str(directory.parent / 'PWNED')!r}, 'w')\nclass X: pass\n"
    (directory / "modeling_x.py").write_text(code)
    names = {f"Auto{kind}": "modeling_x.X" for kind in ("Config", "Model", "ModelForCausalLM")}
    change_config(directory, model_type=model_type, architectures=["X"], auto_map=names)
    return code


@pytest.mark.parametrize("model_type", ["unheard_of", "llama"])
@pytest.mark.fault("B7")
def test_remote_code_is_copied_and_never_run(reference, tmp_path, model_type):
    code = bring_code(reference, model_type)
    assert run("inherit", reference, 2, tmp_path / "out").exit_code == 0
    target = open_model(str(tmp_path / "out"))
    assert (target.path / "modeling_x.py").read_text() == code
    record = json.loads((target.path / "inherit.json").read_text())
    assert record["check"].startswith("not checked: ")
    found = {finding.part: finding for finding in verify_model(target, open_model(str(reference)))}
    assert found["bytes"].proven
    assert not found["class"].proven
    assert not found["reload"].proven
    assert not (tmp_path / "PWNED").exists()


@pytest.fixture
def recipe(reference, tiny_text, tmp_path, monkeypatch):
    """A recipe for the `reference`; everything is written below the test's directory."""
    monkeypatch.chdir(tmp_path)
    fields = {
        "name": "tiny",
        "reference": {"model": str(reference)},
        "data": {"source": str(tiny_text), "val_fraction": 0.2},
        "train": {"tokens": 640, "seq_len": 16, "batch_tokens": 128, "micro_batch": 8},
        "grow": {"add": 0},
        "report": {"prompts": ["the small"], "sample_tokens": 2},
        "evaluate": {"gains": False},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(fields))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("model_type", ["unheard_of", "llama"])
@pytest.mark.fault("B7")
def test_training_and_evaluation_refuse_remote_code(reference, tmp_path, recipe, model_type):
    # No recipe can allow it: there is no key for it.
    bring_code(reference, model_type)
    assert_told(run("run", recipe), 3, r"runs no code of a model directory")
    assert_told(run("run", recipe, "--set", "reference.trust_remote_code=true"), 2, "is not a key")
    for what in (describe, load_model, fresh_model):
        with pytest.raises(UnsupportedModelError, match="runs no code of a model directory"):
            what(reference, 0)
    assert not (tmp_path / "PWNED").exists()
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.fault("B7")
def test_a_class_that_transformers_has_is_taken_instead_of_the_models_own(reference, tmp_path):
    bring_code(reference, "llama")
    change_config(reference, architectures=["LlamaForCausalLM"])
    assert type(load_model(reference)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "PWNED").exists()


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
        {"__class__": 1},
        {"_anything": ["evil/k"]},
    ],
)
@pytest.mark.fault("B8")
def test_config_names_a_kernel_repository(reference, fields):
    change_config(reference, **fields)
    refused(reference, "unknown key '_|code from elsewhere: .*evil/k")


@pytest.mark.fault("B8")
def test_honest_underscores_are_fine(reference):
    change_config(reference, _name_or_path="a/b", _attn_implementation="sdpa")
    # distilgpt2 and fine-tunes of it; a README that has users write the second.
    change_config(reference, _num_labels=1, _flash_attn_2_enabled=True, _nothing=None)
    assert open_model(str(reference)).layers == 4


@pytest.mark.fault("B9")
def test_config_asks_to_be_trusted(reference):
    change_config(reference, trust_remote_code=True)
    with pytest.warns(UserWarning, match="trust_remote_code: ignored"):
        assert open_model(str(reference)).layers == 4


HOSTILE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}{% endfor %}"


@pytest.mark.fault("B10")
def test_a_hostile_template_is_copied_as_bytes_and_never_rendered(reference, tmp_path, recipe):
    # `push` does not exist yet.
    mark = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "PWNED") + "') }}"
    (reference / "chat_template.jinja").write_text(mark + HOSTILE)
    (reference / "additional_chat_templates").mkdir()
    (reference / "additional_chat_templates" / "tool.jinja").write_text(mark + HOSTILE)
    settings = json.loads((reference / "tokenizer_config.json").read_text())
    settings["chat_template"] = mark + HOSTILE
    (reference / "tokenizer_config.json").write_text(json.dumps(settings))
    assert run("inherit", reference, 2, tmp_path / "out").exit_code == 0
    assert run("verify", tmp_path / "out", "--reference", reference).exit_code == 0
    assert run("run", recipe).exit_code in {0, 6}
    assert run("report", tmp_path / "runs" / "tiny").exit_code == 0
    for target in (tmp_path / "out", tmp_path / "runs" / "tiny" / "target"):
        assert (target / "chat_template.jinja").read_text() == mark + HOSTILE
        for name in ("tokenizer_config.json", "additional_chat_templates/tool.jinja"):
            assert (target / name).read_bytes() == (reference / name).read_bytes()
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.fault("B11")
def test_huge_template_is_never_rendered(reference, tmp_path):
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
@pytest.mark.fault("B12")
def test_config_is_broken(reference, text):
    (reference / "config.json").write_bytes(text)
    refused(reference, r"config\.json")


@pytest.mark.fault("B12")
def test_config_is_huge(reference):
    with (reference / "config.json").open("wb") as file:
        file.truncate(500_000_000)
    refused(reference, "larger than")


FLOODS = {
    "brackets": lambda size: b'{"a":' + b"[" * (size - 5),
    "lists": lambda size: b'{"a":[' + b"[]," * (size // 3 - 3) + b"[]]}",
    "objects": lambda size: b'{"a":[' + b'{"":{}},' * (size // 8 - 2) + b"1]}",
    "tiny keys": lambda size: b"{" + b",".join(b'"%x":1' % i for i in range(size // 11)) + b"}",
    "fewer tiny keys": lambda size: b"{" + b",".join(b'"%x":1' % i for i in range(490_000)) + b"}",
    "keys": lambda size: (
        b"{"
        + b",".join(b'"%024d":"%024d"' % (i, i) for i in range(min(size // 56, 490_000)))
        + b"}"
    ),
    "long numbers": lambda size: b'{"a":[' + b",".join([b"9" * 4000] * (size // 4010)) + b"]}",
    "a long text": lambda size: b'{"a":"' + b"x" * (size - 9) + b'"}',
    "a wide text": lambda size: b'{"a":"\xf0\x9f\x98\x80' + b"x" * (size - 13) + b'"}',
    "a text wide by its escapes": lambda size: b'{"a":"\\ud83d\\ude00' + b"x" * (size - 30) + b'"}',
}
COSTLIEST = ("brackets", "fewer tiny keys", "a text wide by its escapes")  # one of each kind
READ = """
import json, sys, time
from inheritune.model_files.directory import open_model
from inheritune.errors import SourceError
from inheritune.surgery.plan import plan_inherit
for directory in sys.argv[1:]:
    started = time.process_time()
    try:
        plan_inherit(open_model(directory), 2)
        print(json.dumps(["fine", time.process_time() - started]))
    except SourceError as error:
        print(json.dumps([str(error), time.process_time() - started]))
# Not getrusage: its peak is inherited from the process that started this one.
status = dict(line.split(':') for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(status['VmHWM'].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.parametrize(
    "flood",
    [name if name in COSTLIEST else pytest.param(name, marks=pytest.mark.slow) for name in FLOODS],
)
@pytest.mark.fault("B12", "B16")
def test_a_file_that_would_fill_the_memory_is_refused_in_little(reference, tmp_path, flood):
    fill = FLOODS[flood]
    directories = {name: tmp_path / name for name in ("config.json", INDEX, "model.safetensors")}
    for name, directory in directories.items():
        shutil.copytree(reference, directory)
        (directory / "model.safetensors").unlink()
        sizes = {"model.safetensors": 2**24 - 1, "config.json": 2**25}
        text = fill(sizes.get(name, 2**25))
        length = struct.pack("<Q", len(text)) if name == "model.safetensors" else b""
        (directory / name).write_bytes(length + text)
    (directories["config.json"] / "model.safetensors").touch()
    command = [sys.executable, "-c", READ, *map(str, directories.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    *reports, memory_kib = done.stdout.splitlines()
    assert len(reports) == len(directories)
    for name, report in zip(directories, reports, strict=True):
        message, seconds = json.loads(report)
        assert name in message
        assert seconds < 2
    assert int(memory_kib) < 300 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.fault("B12", "B16")
def test_as_much_as_is_allowed_is_read_in_little(reference):
    def keys(number):
        return {f"{i:024}": f"{i:024}" for i in range(number)}

    change_config(reference, **keys(480_000))
    with_header(
        reference,
        lambda text: json.dumps(
            {"__metadata__": keys(270_000)}
            | {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        ).encode(),
    )
    command = [sys.executable, "-c", READ, str(reference)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    report, memory_kib = done.stdout.splitlines()
    assert json.loads(report)[0] == "fine"
    assert int(memory_kib) < 300 * 1024, memory_kib


@pytest.mark.fault("B13")
def test_config_and_weights_disagree_on_the_layers(reference):
    change_config(reference, num_hidden_layers=6)
    refused(reference, r"says 6 layers, but the weights hold 0-3 .*missing: 4-5")
    change_config(reference, num_hidden_layers=3)
    refused(reference, r"says 3 layers, but the weights also hold 3")
    change_config(reference, num_hidden_layers=10**15)
    refused(reference, "cannot be")


@pytest.mark.slow  # a process, and five classes; every class is asked by `make support`
@pytest.mark.fault("B14")
def test_per_layer_lists_are_consistent_in_a_fresh_process(tiny_model, tmp_path):
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


@pytest.mark.fault("B15")
def test_ties_are_preserved_and_wrong_ones_refused(tiny_model, tmp_path):
    copies = {f: shutil.copytree(tiny_model(f), tmp_path / f) for f in ("llama", "llama-tied")}
    change_config(copies["llama-tied"], tie_word_embeddings=False)
    with pytest.raises(SourceError, match=r"at random, such as lm_head\.weight"):
        inherit(open_model(str(copies["llama-tied"])), 2, tmp_path / "wrong")
    for family, tied in (("llama", False), ("llama-tied", True)):
        target = inherit(open_model(str(tiny_model(family))), 2, tmp_path / f"{family}-out")
        assert ("lm_head.weight" in target.tensors) is not tied
        assert target.config["tie_word_embeddings"] is tied
        assert_tied(target.path, tied)


def assert_tied(directory, tied):
    """The head is the embedding, or it is not; no tensor is left over or made up."""
    found = ask_class("reload", directory=str(directory))
    assert (found["tied"], found["unexpected"]) == (tied, [])
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values())
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(head, embedding) is tied


@pytest.mark.parametrize("family, tied", [("llama", False), ("gemma3", True), ("gpt2", True)])
@pytest.mark.fault("B15")
def test_a_tie_that_the_config_leaves_out_is_the_one_of_the_class(
    tiny_model, tmp_path, family, tied
):
    source = shutil.copytree(tiny_model(family), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (source / "config.json").write_text(json.dumps(config))
    assert run("inherit", source, 2, tmp_path / "out").exit_code == 0
    target = open_model(str(tmp_path / "out"))
    assert "tie_word_embeddings" not in target.config
    assert target.tensors.keys() == {t.name for t in kept_tensors(open_model(str(source)), 2)}
    assert_tied(target.path, tied)


@TOLD
@pytest.mark.fault("B15")
def test_a_tie_between_different_matrices_is_said_and_both_are_kept(tiny_model, tmp_path):
    source = shutil.copytree(tiny_model("llama"), tmp_path / "source")
    change_config(source, tie_word_embeddings=True)
    result = run("inherit", source, 2, tmp_path / "out")
    assert result.exit_code == 0
    assert "warning: the class ties head and embedding" in result.stderr
    assert "is tie_word_embeddings in its config right?" in result.stderr
    held, given = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(held[name], given[name])


@pytest.mark.fault("B15")
def test_a_tied_copy_of_the_embedding_is_kept_without_a_word(tiny_model, tmp_path):
    source = shutil.copytree(tiny_model("llama-tied"), tmp_path / "source")
    held = load_file(source / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, source / "model.safetensors", {"format": "pt"})
    result = run("inherit", source, 2, tmp_path / "out")
    assert result.exit_code == 0
    assert "warning" not in result.stderr
    assert "lm_head.weight" in open_model(str(tmp_path / "out")).tensors
    assert_tied(tmp_path / "out", True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 1000) + b"{}",
        struct.pack("<Q", 101_000_000) + b"{" + b" " * 1000,
        struct.pack("<Q", 101_000_000) + b"{" + b" " * 101_000_000,
        struct.pack("<Q", 8) + b"not json",
        struct.pack("<Q", 8) + b"{not js}",
        struct.pack("<Q", 8) + b'{"\xff\xff":{}',
    ],
    ids=lambda content: repr(content[:10]),
)
@pytest.mark.fault("B16")
def test_header_is_broken(reference, content):
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
@pytest.mark.fault("B17")
def test_header_lies(reference, field, value):
    def lie(text):
        header = json.loads(text)
        header["model.norm.weight"][field] = value
        return json.dumps(header).encode()

    with_header(reference, lie)
    refused(reference, r"model\.safetensors.*model\.norm\.weight|tensor")


@pytest.mark.fault("B17")
def test_bytes_after_the_last_tensor(reference):
    with (reference / "model.safetensors").open("ab") as file:
        file.write(b"x")
    refused(reference, "1 bytes after")


@pytest.mark.fault("B18")
def test_a_tensor_twice_in_a_header(reference):
    def twice(text):
        entry = json.dumps(json.loads(text)["model.norm.weight"]).encode()
        return text.rstrip().removesuffix(b"}") + b',"model.norm.weight":' + entry + b"}"

    with_header(reference, twice)
    refused(reference, r"'model\.norm\.weight' appears twice")


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
@pytest.mark.fault("B19")
def test_something_else_under_the_name_of_weights(reference, content, words):
    (reference / "model.safetensors").write_bytes(content)
    assert words in str(refused(reference, "model.safetensors"))


@TOLD
@pytest.mark.fault("B19")
def test_zeros_of_the_right_size_are_said(reference, tmp_path):
    length = int.from_bytes((reference / "model.safetensors").read_bytes()[:8], "little")
    with (reference / "model.safetensors").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(8 + length)  # cut off there, and filled up to the size that was promised
        file.truncate(size)
    result = run("inherit", reference, 2, tmp_path / "out")
    assert result.exit_code == 0
    assert re.search(r"warning: \S+ and \d+ other matrices of reference hold zeros", result.stderr)
    assert "is its download complete?" in result.stderr


@TOLD
@pytest.mark.fault("B19")
def test_one_matrix_of_zeros_is_said(reference, tmp_path):
    change_tensor(reference, "model.layers.1.mlp.up_proj.weight", 0.0)
    result = run("inherit", reference, 2, tmp_path / "out")
    assert "warning: model.layers.1.mlp.up_proj.weight" in result.stderr


def change_tensor(directory, name, value):
    held = load_file(directory / "model.safetensors")
    held[name] = torch.full_like(held[name], value)
    save_file(held, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.fault("B22")
def test_an_inherited_tensor_that_is_not_finite_is_refused(tiny_model, tmp_path, value, dtype):
    source = tiny_models.save("llama", tmp_path / "source", dtype)
    held = load_file(source / "model.safetensors")
    held["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(held, source / "model.safetensors", {"format": "pt"})
    words = r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite values, from .*source"
    assert_told(run("inherit", source, 2, tmp_path / "out"), 3, words)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@TOLD
@pytest.mark.fault("B22")
def test_a_dropped_tensor_that_is_not_finite_is_a_warning(reference, tmp_path):
    change_tensor(reference, "model.layers.3.mlp.up_proj.weight", float("nan"))
    assert run("inherit", reference, 2, tmp_path / "out").exit_code == 0
    result = run("verify", tmp_path / "out", "--reference", reference)
    assert result.exit_code == 0, result.output
    words = "warning: model.layers.3.mlp.up_proj.weight of reference holds NaN or infinite values"
    assert words in result.stderr


@pytest.mark.parametrize("lost", [1, None])
@pytest.mark.fault("B20")
def test_shard_is_short(sharded, lost):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - (lost or shard.stat().st_size // 2))
    refused(sharded, shard.name)


@pytest.mark.fault("B21")
def test_shard_missing_or_holding_other_tensors(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    held, other = load_file(first), load_file(second)
    name = next(iter(held))
    save_file(held | {"more": torch.ones(1)}, first)
    with pytest.warns(UserWarning, match="does not name more, which a file holds"):
        open_model(str(sharded))
    save_file({k: v for k, v in held.items() if k != name} or {"x": torch.ones(1)}, first)
    with pytest.warns(UserWarning, match="which no file holds"):
        open_model(str(sharded))
    save_file(held, first)
    save_file(other | {name: held[name] + 1}, second)
    refused(sharded, "is in two files, .* with different values")
    save_file(other, second)
    assert open_model(str(sharded)).layers == 4
    second.unlink()
    refused(sharded, second.name)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "blt"}, "five stacks"),
        ({"model_type": "hrm_text"}, "hrm_text"),
        ({"model_type": "xlm"}, "parallel lists"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "hrm_text"}, "loop"),
        ({"model_type": "gemma4_assistant"}, "another model"),
    ],
)
@pytest.mark.fault("B23")
def test_model_is_of_a_kind_that_is_refused(reference, fields, words):
    change_config(reference, **fields)
    assert "not supported" in str(refused(reference, words, UnsupportedModelError))


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("model.layers.0.self_attn.q_proj.qweight", torch.ones(2, dtype=torch.int32)),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", torch.ones(2)),
        ("model.layers.0.self_attn.q_proj.SCB", torch.ones(2)),
        ("model.layers.0.self_attn.q_proj.qzeros", torch.ones(2, dtype=torch.int32)),
        ("model.layers.0.extra", torch.ones(2).to(torch.float8_e4m3fn)),
    ],
)
@pytest.mark.fault("B23")
def test_tensors_are_quantised(reference, name, tensor):
    held = load_file(reference / "model.safetensors") | {name: tensor}
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    refused(reference, "quantised", UnsupportedModelError)


@pytest.mark.parametrize(
    "files, words",
    [
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA"),
        (["model.Q4_K_M.gguf"], "GGUF"),
        (["pytorch_model.pt"], "only safetensors"),
        ([], "neither"),
    ],
)
@pytest.mark.fault("B23")
def test_directory_is_of_a_kind_that_is_refused(reference, files, words):
    (reference / "model.safetensors").unlink()
    for name in files:
        (reference / name).write_bytes(b"x")
    assert refused(reference, words).hint


@pytest.mark.fault("B24")
def test_padded_embedding_is_kept(tmp_path):
    tiny_models.train_tokenizer(tmp_path / "reference")
    model = tiny_models.build("llama", vocab_size=448)
    model.save_pretrained(tmp_path / "reference")
    target = inherit(open_model(str(tmp_path / "reference")), 2, tmp_path / "out")
    assert target.tensors["model.embed_tokens.weight"].shape == (448, 32)
    assert target.tensors["lm_head.weight"].shape == (448, 32)


def extend_tokenizer(directory, rows, content, special):
    """Add a token whose id is the first one that the embedding has no row for."""
    text = json.loads((directory / "tokenizer.json").read_text())
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    added = {"id": rows, "content": content, "special": special} | flags
    text["added_tokens"].append(added)
    (directory / "tokenizer.json").write_text(json.dumps(text, indent=2))


@pytest.fixture
def rows(reference):
    return open_model(str(reference)).tensors["model.embed_tokens.weight"].shape[0]


@pytest.mark.fault("B25")
def test_a_token_added_without_a_row_is_refused(reference, rows):
    extend_tokenizer(reference, rows, "<new>", special=False)
    error = refused(reference, rf"the id {rows} to '<new>', but the embedding has {rows} rows")
    assert "extended without the embedding" in error.hint


@pytest.mark.fault("B25")
def test_a_special_token_without_a_row_is_refused_where_it_ends_documents(reference, rows):
    extend_tokenizer(reference, rows, "<end>", special=True)
    with pytest.warns(UserWarning, match=f"the id {rows} to the special token '<end>'"):
        open_model(str(reference))
    settings = json.loads((reference / "tokenizer_config.json").read_text())
    for end in ("<end>", {"content": "<end>"}):
        settings["eos_token"] = end
        (reference / "tokenizer_config.json").write_text(json.dumps(settings))
        refused(reference, rf"the id {rows} to '<end>'")


@pytest.mark.parametrize("lacking", [1, 50])
@pytest.mark.fault("B25")
def test_a_vocabulary_larger_than_the_embedding_is_refused(reference, rows, lacking):
    held = load_file(reference / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        held[name] = held[name][:-lacking].clone()
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    change_config(reference, vocab_size=rows - lacking)
    refused(reference, rf"the id {rows - 1} to .*, but the embedding has {rows - lacking} rows")


@pytest.mark.fault("B25")
def test_a_list_for_a_vocabulary_is_counted(reference, rows):
    def write(pieces):
        vocabulary = [("<unk>", 0.0), *((f"p{i}", -1.0) for i in range(pieces - 1))]
        tokenizer = Tokenizer(Unigram(vocabulary, 0, False))
        tokenizer.save(str(reference / "tokenizer.json"))

    write(rows)
    assert open_model(str(reference)).layers == 4
    write(rows + 1)
    refused(reference, rf"the id {rows} to 'p{rows - 1}', but the embedding has {rows} rows")


@pytest.mark.fault("B25")
def test_numbers_in_texts_are_no_ids(reference):
    text = json.loads((reference / "tokenizer.json").read_text())
    text["truncation"] = {"max_length": 10**6, "stride": 0} | {
        "direction": "Right",
        "strategy": "LongestFirst",
    }
    vocabulary, text["model"]["merges"] = text["model"]["vocab"], []
    vocabulary['":99999,'] = vocabulary.pop(max(vocabulary, key=vocabulary.get))
    (reference / "tokenizer.json").write_text(json.dumps(text))
    assert open_model(str(reference)).layers == 4


@pytest.mark.fault("B26")
def test_read_only_directory(reference, tmp_path):
    before = sorted(p.name for p in reference.iterdir())
    for path in (*reference.iterdir(), reference):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        inherit(open_model(str(reference)), 2, tmp_path / "out")
        assert sorted(p.name for p in reference.iterdir()) == before
    finally:
        reference.chmod(0o755)


@pytest.mark.fault("B27")
def test_file_is_truncated_after_its_header_was_read(reference, tmp_path):
    model = open_model(str(reference))
    os.truncate(reference / "model.safetensors", 20_000)
    with pytest.raises(InherituneError, match=r"model\.safetensors ended at byte") as error:
        inherit(model, 2, tmp_path / "out")
    assert error.value.exit_code == 3
    assert [p.name for p in Path(tmp_path).iterdir()] == ["reference"]


def write_large(directory):
    """A Llama of zeros whose file takes no space, but a while to read."""
    rows = 2**20
    config = tiny_models.build("llama").config.to_dict() | {"vocab_size": rows}
    shapes = {n: tuple(p.shape) for n, p in tiny_models.build("llama").named_parameters()}
    shapes |= dict.fromkeys(["model.embed_tokens.weight", "lm_head.weight"], (rows, 32))
    return write_sparse(directory, config, shapes, "F32")


def stop_when_mapped(path, done, stopped):
    """Wait until a child of this process maps a file, cut the file off, and let it go on."""
    while not done.is_set():
        for listed in Path("/proc/self/task").glob("*/children"):
            for pid in listed.read_text().split():
                with contextlib.suppress(OSError):
                    if str(path) not in Path(f"/proc/{pid}/maps").read_text():
                        continue
                    os.kill(int(pid), signal.SIGSTOP)
                    os.truncate(path, 20_000)
                    os.kill(int(pid), signal.SIGCONT)
                    stopped.append(pid)
                    return


@pytest.mark.skipif(sys.platform != "linux", reason="Linux shows what a process maps")
@pytest.mark.fault("B27")
def test_file_is_truncated_while_another_process_has_it_mapped(tmp_path):
    large = write_large(tmp_path / "large")
    done, stopped = threading.Event(), []
    watcher = threading.Thread(
        target=stop_when_mapped, args=(large / "model.safetensors", done, stopped), daemon=True
    )
    watcher.start()
    try:
        with pytest.raises(SourceError) as error:
            ask_class("reload", directory=str(large))
    finally:
        done.set()
        watcher.join()
    assert (large / "model.safetensors").stat().st_size == 20_000
    # Whether it died of SIGBUS or its library found the file too short: an error that names it.
    assert "large" in str(error.value)


@pytest.fixture
def moving(tmp_path):
    """A Hub whose branch can be moved from one model to another one."""
    first = tiny_models.save("llama", tmp_path / "first")
    second = tiny_models.build("llama")
    with torch.no_grad():
        second.model.embed_tokens.weight.mul_(2)
    second.save_pretrained(tmp_path / "second")
    commits = {COMMIT: first, "2" * 40: tmp_path / "second"}
    with (
        hub_server.serve(Hub(MODEL, commits)) as hub,
        hub_server.taken_for_the_hub(hub, tmp_path / "hf"),
    ):
        yield hub


def inherited_from(target, repository):
    held, given = (
        load_file(target / "model.safetensors"),
        load_file(repository / "model.safetensors"),
    )
    return all(torch.equal(held[name], given[name]) for name in held)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.fault("B28")
def test_a_branch_that_moves_after_the_model_was_opened_changes_nothing(moving, tmp_path, whole):
    opened = open_model(MODEL, "main", whole=whole)
    moving.revisions["main"] = "2" * 40
    target = inherit(opened, 2, tmp_path / "out").path
    record = json.loads((target / "inherit.json").read_text())["reference"]
    assert record["revision"] == COMMIT
    assert inherited_from(target, tmp_path / "first")
    assert open_model(MODEL, "main", whole=False).revision == "2" * 40  # asked again, it is seen


@pytest.mark.fault("B28")
def test_a_cut_names_the_commit_and_not_the_branch(moving, tmp_path):
    result = run("inherit", MODEL, 2, tmp_path / "out")
    assert result.stderr.strip().endswith(f"--reference {MODEL} --revision {COMMIT}")
    moving.revisions["main"] = "2" * 40
    assert (
        run("verify", tmp_path / "out", "--reference", MODEL, "--revision", COMMIT).exit_code == 0
    )
    moved = run("verify", tmp_path / "out", "--reference", MODEL)
    assert_told(moved, 3, "model.embed_tokens.weight differs from model.embed_tokens.weight")


@pytest.mark.fault("B28")
def test_a_commit_that_is_gone_is_told(moving, tmp_path):
    inherit(open_model(MODEL, whole=False), 2, tmp_path / "out")
    shutil.rmtree(tmp_path / "hf")
    moving.revisions["main"] = "2" * 40
    del moving.commits[COMMIT]
    arguments = ("verify", tmp_path / "out", "--reference", MODEL, "--revision", COMMIT)
    assert_told(run(*arguments), 3, f"has no revision {COMMIT}")
