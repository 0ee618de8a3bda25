"""Reading a Hub model in parts, from a real server on this machine."""

import shutil
from pathlib import Path

import pytest
from hub_server import COMMIT, INDEX, MODEL, SHARDS
from remote_model import equal, header_bytes, ranges_of, weights_sent, write_model

from inheritune.errors import MachineError
from inheritune.model_files.download.partial import open_partial
from inheritune.model_files.safetensors import read_header

OTHER_COMMIT = "2" * 40


def test_opening_brings_small_files_and_headers_only(hub, repository):
    remote = open_partial(MODEL, None)
    assert (remote.name, remote.commit, remote.directory.name) == (MODEL, COMMIT, COMMIT)
    names = {p.relative_to(remote.directory).as_posix() for p in remote.directory.rglob("*")}
    small = {INDEX, "config.json", "tokenizer.json", "added_tokens.json", "LICENSE"}
    folder = {"additional_chat_templates", "additional_chat_templates/short.jinja"}
    assert names == {*SHARDS, *small, *folder}
    for name in [*small, "additional_chat_templates/short.jinja"]:
        assert (remote.directory / name).read_bytes() == (repository / name).read_bytes()
    for shard in SHARDS:
        ours, theirs = read_header(remote.directory / shard), read_header(repository / shard)
        assert [(t.name, t.offset, t.size) for t in ours[0]] == [
            (t.name, t.offset, t.size) for t in theirs[0]
        ]
        assert ours[1] == {"format": "pt"}
    beginnings = sum(max(64, (repository / s).stat().st_size // 256) for s in SHARDS)
    assert weights_sent(hub) <= header_bytes(repository) + beginnings
    asked = "".join(request.path for request in hub.log)
    assert not any(word in asked for word in (".bin", "consolidated", "original/", ".gguf"))


def test_a_weight_file_takes_only_the_space_of_what_is_there(hub, repository):
    remote = open_partial(MODEL, None)
    file = (remote.directory / SHARDS[0]).stat()
    assert file.st_size == (repository / SHARDS[0]).stat().st_size
    assert file.st_blocks * 512 < file.st_size / 4


def test_only_kept_bytes_are_downloaded_and_they_are_the_models(hub, repository):
    remote = open_partial(MODEL, "main")
    before = weights_sent(hub)
    wanted = ranges_of(remote.directory, 3)
    kept = sum(size for _, _, size in wanted)
    missing = remote.missing_bytes(wanted)
    assert 0.98 * kept < missing <= 1.01 * kept
    remote.download(wanted)
    assert weights_sent(hub) - before == missing
    assert weights_sent(hub) <= 1.01 * kept + header_bytes(repository) + 3 * 512
    equal(remote, repository, wanted)
    assert remote.missing_bytes(wanted) == 0


def test_present_bytes_are_not_requested_again(hub):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 3)
    remote.download(wanted)
    hub.log.clear()
    remote.download(wanted)
    again = open_partial(MODEL, COMMIT)
    assert again.missing_bytes(wanted) == 0
    again.download(wanted)
    assert hub.log == []
    open_partial(MODEL, None)
    assert [request.path for request in hub.log] == [f"/api/models/{MODEL}"]


def test_more_layers_bring_their_own_bytes_only(hub, repository):
    remote = open_partial(MODEL, None)
    remote.download(ranges_of(remote.directory, 2))
    before = weights_sent(hub)
    wanted = ranges_of(remote.directory, 4)
    remote.download(wanted)
    assert weights_sent(hub) - before <= 1.01 * sum(s for _, _, s in wanted) / 2
    equal(remote, repository, wanted)


def test_a_single_file_model_needs_no_index(hub, repository):
    (repository / INDEX).unlink()
    (repository / SHARDS[1]).rename(repository / "model.safetensors")
    remote = open_partial(MODEL, None)
    tensors, _ = read_header(remote.directory / "model.safetensors")
    wanted = [("model.safetensors", t.offset, t.size) for t in tensors]
    remote.download(wanted)
    equal(remote, repository, wanted)


def test_a_model_in_the_cache_of_the_hub_is_used_there(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants, snapshot_download

    snapshot = Path(snapshot_download(MODEL))
    hub.log.clear()
    remote = open_partial(MODEL, None)
    assert remote.directory == snapshot
    wanted = ranges_of(remote.directory, 6)
    assert remote.missing_bytes(wanted) == 0
    remote.download(wanted)
    assert [request.path for request in hub.log] == [f"/api/models/{MODEL}"]
    shutil.rmtree(tmp_path / "hf" / "inheritune")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_partial(MODEL, None).directory == snapshot
    (snapshot / SHARDS[2]).unlink()
    with pytest.raises(MachineError, match="cannot get someone/model"):
        open_partial(MODEL, None)


def test_a_redirect_keeps_the_range_and_loses_the_token(hub, repository):
    hub.cdn = True
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 3)
    hub.faults.extend(["cut off", 500])
    remote.download(wanted)
    equal(remote, repository, wanted)
    cdn_port = int(hub.cdn_url.rpartition(":")[2])
    on_cdn = [request for request in hub.log if request.port == cdn_port]
    assert len(on_cdn) >= 6
    assert {request.token for request in on_cdn} == {None}
    assert all(request.range for request in on_cdn)
    at_hub = [request for request in hub.log if request.port != cdn_port]
    assert {request.token for request in at_hub} == {"Bearer hf_secret"}


def test_offline_a_full_mirror_is_enough(hub, repository, monkeypatch):
    from huggingface_hub import constants

    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 2)
    remote.download(wanted)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remote = open_partial(MODEL, None)
    assert remote.commit == COMMIT
    remote.download(wanted)
    equal(remote, repository, wanted)
    with pytest.raises(MachineError, match="cannot get someone/model from the Hub"):
        remote.download(ranges_of(remote.directory, 3))
    with pytest.raises(MachineError, match="cannot get someone/model from the Hub"):
        open_partial(MODEL, "other")
    assert hub.log == []


def test_without_a_network_the_last_commit_is_used_and_said(hub, monkeypatch):
    from huggingface_hub import constants

    open_partial(MODEL, None)
    hub.down = 500
    with pytest.warns(UserWarning, match="main is taken to mean 111111111111, as last time"):
        assert open_partial(MODEL, None).commit == COMMIT
    hub.down = 0
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="as last time"):
        assert open_partial(MODEL, None).commit == COMMIT
    with pytest.raises(MachineError, match="cannot get someone/model"):
        open_partial(MODEL, "never-seen")


def test_a_listing_is_asked_for_again_where_the_connection_is_closed(hub):
    hub.drops = {0, 1}
    assert open_partial(MODEL, None).commit == COMMIT
    hub.drops = set(range(10))
    with pytest.raises(MachineError, match=r"cannot get someone/model .* without .* a response"):
        open_partial(MODEL, "never-seen")
    assert len(hub.asked_of_the_api()) == 6


def test_a_branch_that_moves_leaves_an_opened_model_as_it_was(hub, repository, tmp_path):
    remote = open_partial(MODEL, "main")
    hub.commits[OTHER_COMMIT] = write_model(tmp_path / "moved", seed=1)
    hub.revisions["main"] = OTHER_COMMIT
    wanted = ranges_of(remote.directory, 2)
    remote.download(wanted)
    equal(remote, repository, wanted)
    assert all(f"/resolve/{COMMIT}/" in r.path for r in hub.asked(".safetensors"))
    moved = open_partial(MODEL, "main")
    assert moved.commit == OTHER_COMMIT
    moved.download(wanted)
    equal(moved, tmp_path / "moved", wanted)
    pinned = open_partial(MODEL, COMMIT)
    assert (pinned.commit, pinned.missing_bytes(wanted)) == (COMMIT, 0)
