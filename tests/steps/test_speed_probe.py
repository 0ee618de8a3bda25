import tempfile
from pathlib import Path

import pytest

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import Interrupted
from inheritune.recipe.training import Train
from inheritune.steps.speed_probe import seconds_per_token
from inheritune.system.signals import StopFlag
from inheritune.system.strict_json import read_json

TRAIN = Train(tokens=1280, seq_len=16, batch_tokens=128, micro_batch=8)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_real_steps_are_measured_and_thrown_away(
    tiny_reference: Path, tiny_tokens: TokenDirectory, scratch: Path
) -> None:
    config = read_json(tiny_reference / "config.json")
    seconds = seconds_per_token(config, TRAIN, tiny_tokens.train, 1e5, StopFlag())
    assert 1e-6 < seconds < 1e-1
    assert [*scratch.iterdir()] == []


def test_a_stop_between_steps_leaves_nothing(
    tiny_reference: Path, tiny_tokens: TokenDirectory, scratch: Path
) -> None:
    config = read_json(tiny_reference / "config.json")
    stop = StopFlag()
    stop.heed(True)
    with pytest.raises(Interrupted, match="nothing was begun"):
        seconds_per_token(config, TRAIN, tiny_tokens.train, 1e5, stop)
    assert [*scratch.iterdir()] == []


def test_a_step_of_a_large_model_has_fewer_sequences(
    tiny_reference: Path,
    tiny_tokens: TokenDirectory,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from inheritune.training import setup

    batches = []
    make_setup = setup.make_setup

    def noted(model, train, *others):
        batches.append((train.micro_batch, train.batch_tokens))
        return make_setup(model, train, *others)

    monkeypatch.setattr(setup, "make_setup", noted)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = read_json(tiny_reference / "config.json")
    for flops in (1.0, 1e15):
        seconds_per_token(config, TRAIN, tiny_tokens.train, flops, StopFlag())
    assert batches == [(8, 128), (1, 16)]
