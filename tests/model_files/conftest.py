"""A model on a server that is taken for the Hub."""

import hub_server
import pytest
from hub_server import COMMIT, MODEL, Hub
from remote_model import write_model


@pytest.fixture
def repository(tmp_path):
    """The files of the model at `COMMIT`; made for one test, which may change them."""
    return write_model(tmp_path / "repository")


@pytest.fixture
def hub(repository, tmp_path):
    """The server that has them; the cache is `tmp_path / "hf"`."""
    with (
        hub_server.serve(Hub(MODEL, {COMMIT: repository})) as server,
        hub_server.taken_for_the_hub(server, tmp_path / "hf"),
    ):
        yield server
