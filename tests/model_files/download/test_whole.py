"""Downloading a Hub model with all of its weights, from a real server on this machine."""

import pytest
from hub_server import COMMIT, MODEL, SHARDS

from inheritune.errors import Interrupted, SourceError
from inheritune.model_files.directory import open_model
from inheritune.model_files.download import whole as whole_download


def test_d3_a_stop_ends_a_download_at_once_and_the_next_one_completes_it(hub, repository):
    hub.always = "hang"  # half of each file, then nothing for 20 seconds
    with pytest.raises(Interrupted, match="what has arrived is kept") as error:
        open_model(MODEL, stop=lambda: hub.sent(".safetensors") > 0)
    assert error.value.exit_code == 75
    assert not hub.go_on.is_set()  # nobody waited for the server
    hub.always = None
    opened = open_model(MODEL)
    assert opened.revision == COMMIT
    for name in SHARDS:
        assert (opened.path / name).read_bytes() == (repository / name).read_bytes()


def test_a_connection_closed_without_an_answer_ends_no_download(hub, repository):
    hub.drops = {0, 3}  # the first question of each of the library's two passes
    opened = open_model(MODEL)
    assert len(hub.asked_of_the_api()) == 6
    for name in SHARDS:
        assert (opened.path / name).read_bytes() == (repository / name).read_bytes()


def test_a_file_that_is_not_what_the_hub_lists_is_refused_and_downloaded_anew(hub, repository):
    hub.always = "flipped"
    with pytest.raises(SourceError, match=rf"{SHARDS[0]}.*digest that the Hub lists") as error:
        open_model(MODEL)
    assert error.value.exit_code == 3
    hub.always = None
    assert (open_model(MODEL).path / SHARDS[0]).read_bytes() == (
        repository / SHARDS[0]
    ).read_bytes()


def test_a_file_is_compared_once(hub, monkeypatch):
    snapshot = open_model(MODEL).path
    monkeypatch.setattr(whole_download, "sha256", lambda *arguments: pytest.fail("again"))
    whole_download.check_digests(snapshot, MODEL)
    assert all((snapshot / name).is_symlink() for name in SHARDS)


def test_a_missing_model_is_named(hub):
    with pytest.raises(SourceError, match="the Hub has no someone/other"):
        open_model("someone/other")
