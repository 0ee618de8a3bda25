"""Models that are refused without a download, and machines that cannot hold one."""

import json
import subprocess
import sys
import threading
from collections import namedtuple

import hub_server
import numpy as np
import pytest
from hub_server import COMMIT, INDEX, MODEL, SHARDS, environment
from remote_model import ranges_of
from safetensors.numpy import load_file, save_file

from inheritune.errors import MachineError, SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.model_files.download.hub import is_wanted, wanted_files
from inheritune.model_files.download.partial import open_partial
from inheritune.model_files.safetensors import read_header


@pytest.mark.parametrize(
    "refusal, kind, words",
    [
        ((401, "RepoNotFound"), SourceError, "the Hub has no someone/model"),
        ((403, "GatedRepo"), SourceError, "someone/model is gated"),
        ((404, "RevisionNotFound"), SourceError, "someone/model has no revision main"),
        ((403, "Forbidden"), SourceError, "does not show someone/model to this account"),
        ((503, "Busy"), MachineError, "cannot get someone/model from the Hub"),
    ],
)
def test_refusals_of_the_hub_are_ours_with_its_words(hub, refusal, kind, words):
    hub.refusal = refusal
    with pytest.raises(kind, match=words) as error:
        open_partial(MODEL, "main")
    assert len(str(error.value).splitlines()) == 1


def test_a_model_gated_after_opening_is_named(hub):
    remote = open_partial(MODEL, None)
    hub.refusal = (403, "GatedRepo")
    with pytest.raises(SourceError, match="someone/model is gated"):
        remote.download(ranges_of(remote.directory, 1))


def test_a_missing_model_and_a_missing_revision_are_named(hub):
    with pytest.raises(SourceError, match="the Hub has no no/thing"):
        open_partial("no/thing", None)
    with pytest.raises(SourceError, match="has no revision v9"):
        open_partial(MODEL, "v9")


@pytest.mark.parametrize(
    "says",
    [
        *(b"<html>log in first</html>", b"[]", b"{}", b'{"id": "a", "sha": "../.."}', b"\xff"),
        b'{"id": "a", "sha": "%s", "siblings": [{"rfilename": "x", "size": -1}]}' % (b"1" * 40),
        b'{"id": "a", "sha": "%s", "siblings": [{"rfilename": 7, "size": 1}]}' % (b"1" * 40),
        b'{"id": "a", "sha": "%s", "siblings": [{"rfilename": "x", "size": %d}]}'
        % (b"1" * 40, 2**70),
    ],
)
def test_an_answer_that_is_not_the_hubs_is_refused(hub, says):
    hub.says = says
    with pytest.raises(MachineError, match=r"says of someone/model cannot be read: .* login"):
        open_partial(MODEL, None)


@pytest.mark.parametrize("model", ["../x", "a/b/c", "/etc", "a--b", ""])
def test_an_invalid_hub_id_is_not_requested(hub, model):
    with pytest.raises(SourceError, match="not a Hub id"):
        open_partial(model, None)
    assert hub.log == []


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "C:x.safetensors", ""])
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_asked(hub, repository, name):
    index = json.loads((repository / INDEX).read_text())
    index["weight_map"]["a"] = name
    (repository / INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError, match="only plain names"):
        open_partial(MODEL, None)
    assert not hub.asked(".safetensors")


def test_an_index_may_name_only_files_that_are_there(hub, repository):
    (repository / SHARDS[1]).unlink()
    with pytest.raises(SourceError, match=r"model-00002-of-00003\.safetensors, which is not there"):
        open_partial(MODEL, None)
    assert not hub.asked(".safetensors")


@pytest.mark.parametrize(
    "names, kind, words",
    [
        (["pytorch_model.bin", "config.json"], UnsupportedModelError, "pytorch_model.bin"),
        (["adapter_config.json"], UnsupportedModelError, "LoRA"),
        (["m.gguf"], UnsupportedModelError, "GGUF"),
        (["README.md"], SourceError, "neither model.safetensors nor"),
        (["model.safetensors"], SourceError, "no config.json"),
    ],
)
def test_a_repository_without_safetensors_is_refused_unfetched(hub, tmp_path, names, kind, words):
    directory = tmp_path / "other"
    directory.mkdir()
    for name in names:
        (directory / name).write_text("{}")
    hub.commits = {COMMIT: directory}
    with pytest.raises(kind, match=words):
        open_partial(MODEL, None)
    assert [request.path for request in hub.log] == [f"/api/models/{MODEL}"]


@pytest.mark.parametrize("data", [b"", b"GGUF" + b"x" * 900, b"\xff" * 900, b"<html>" + b" " * 99])
def test_a_foreign_weight_file_is_left_to_the_header_reader(hub, repository, data):
    (repository / SHARDS[0]).write_bytes(data)
    remote = open_partial(MODEL, None)
    with pytest.raises(SourceError, match="00001-of-00003"):
        read_header(remote.directory / SHARDS[0])
    assert hub.sent(SHARDS[0]) <= 64


def test_a_small_file_of_other_content_is_refused(hub, repository, monkeypatch):
    listed = hub_server.listing(repository)
    monkeypatch.setattr(hub_server, "listing", lambda directory: listed)
    (repository / "tokenizer.json").write_text("[]" * 100)
    with pytest.raises(MachineError, match=r"tokenizer.json of .* the digest that the Hub lists"):
        open_partial(MODEL, None)
    (repository / "tokenizer.json").write_text("{}" * 100)
    assert (open_partial(MODEL, None).directory / "tokenizer.json").read_text() == "{}" * 100


@pytest.mark.parametrize("open_it", [lambda: open_partial(MODEL, None), lambda: open_model(MODEL)])
def test_more_small_files_than_any_model_has_are_refused_before_one_is_fetched(
    hub, repository, open_it
):
    for number in range(500):
        (repository / f"result-{number}.json").write_text("{}")
    with pytest.raises(SourceError, match=r"has 50\d files beside its weights") as refused:
        open_it()
    assert f"hf download {MODEL} --local-dir DIR --include" in refused.value.hint
    assert hub.sent(".json") == hub.sent(".safetensors") == 0


def test_small_files_have_a_total_as_well_as_a_size():
    sizes = {f"{number}.json": 60 * 2**20 for number in range(4)} | {"x.safetensors": 2**40}
    assert wanted_files(sizes, MODEL) == sizes.keys()
    with pytest.raises(SourceError, match=r"314,572,800 bytes, such as \d\.json"):
        wanted_files(sizes | {"5.json": 60 * 2**20}, MODEL)


def test_names_of_a_listing_stay_in_the_directory():
    wanted = ["config.json", "a b.json", "additional_chat_templates/x.jinja", "LICENSE"]
    assert all(map(is_wanted, wanted))
    unwanted = [
        *("../x.json", "/x.json", "a/../x.jinja", "a\\x.json", "C:x.json", "x\0.json", ""),
        *("additional_chat_templates/../x.jinja", "additional_chat_templates/", "deep/x.model"),
        *(".x.json", "..", "original/x.json", "consolidated.00.json", "x.bin", "x.gguf"),
    ]
    assert not any(map(is_wanted, unwanted))


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file" / "hf"))
    with pytest.raises(MachineError, match="Set HF_HOME to a directory that can be written"):
        open_partial(MODEL, None)


def test_a_full_disk_is_refused_before_any_request(hub, monkeypatch):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 3)
    hub.log.clear()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(MachineError, match=r"10 left\. Free some space, or set HF_HOME"):
        remote.download(wanted)
    assert hub.log == []


def test_a_file_system_without_large_files_is_named(hub, tmp_path):
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "from inheritune.model_files.download.partial import open_partial\n"
        "from inheritune.errors import MachineError\n"
        "try:\n"
        "    open_partial('someone/model', None)\n"
        "except MachineError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(hub, tmp_path / "hf"),
        capture_output=True,
        text=True,
    )
    assert "of-00003.safetensors: file too large. Set HF_HOME" in done.stdout, done.stderr


def test_threads_end_when_a_download_fails(hub):
    remote = open_partial(MODEL, None)
    hub.always = 500
    with pytest.raises(MachineError):
        remote.download(ranges_of(remote.directory, 6))
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_a_quantised_model_of_the_hub_is_sent_to_a_download_and_not_into_the_cache(hub, repository):
    shard = repository / SHARDS[0]
    held = load_file(shard) | {"model.layers.0.mlp.weight_scale_inv": np.ones((1, 1), "f4")}
    save_file(held, shard, {"format": "pt"})
    index = json.loads((repository / INDEX).read_text())
    index["weight_map"]["model.layers.0.mlp.weight_scale_inv"] = SHARDS[0]
    (repository / INDEX).write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match=f"{MODEL} is quantised") as refused:
        open_model(MODEL, whole=False)
    assert f"`hf download {MODEL} --local-dir DIR`" in refused.value.hint
    assert "`inheritune convert DIR OUT`" in refused.value.hint
    assert "models--" not in str(refused.value)
