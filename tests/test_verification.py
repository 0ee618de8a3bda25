"""What is proven about a directory, whichever of ours it is; every flipped byte is found."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_recipe import as_file, recipe_of

from inheritune.errors import CheckpointError, DataError, InherituneError, SourceError
from inheritune.execute import execute
from inheritune.verification import prove


@pytest.fixture(scope="module")
def finished(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that kept the checkpoint from which it grew."""
    root = tmp_path_factory.mktemp("runs") / "run"
    grow = {"add": 1, "max_rounds": 2, "weights": "keep"}
    execute(as_file(recipe_of(tiny_reference, tiny_text, grow=grow)), root)
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def parts(path: Path) -> list[tuple[str, bool]]:
    return [(finding.part, finding.proven) for finding in prove(path)]


def test_a_run_is_proven_by_its_tokens_its_checkpoints_and_its_target(finished: Path) -> None:
    saved = list(finished.glob("variants/*/*/checkpoints/step-*"))
    found = parts(finished)
    assert saved
    assert found[: 1 + len(saved)] == [("tokens", True)] + [("checkpoint", True)] * len(saved)
    assert found[1 + len(saved) :] == parts(finished / "target")


def test_each_part_of_a_run_can_be_proven_alone(finished: Path) -> None:
    assert parts(finished / "tokens") == [("tokens", True)]
    for checkpoint in finished.glob("variants/*/*/checkpoints/step-*"):
        assert parts(checkpoint) == [("checkpoint", True)]


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("tokens/train*.bin", DataError),
        ("tokens/val*.idx", DataError),
        ("variants/*/*/checkpoints/step-*/optimizer*", CheckpointError),
        ("target/model.safetensors", SourceError),
    ],
)
def test_a_flipped_byte_anywhere_is_found(
    run: Path, pattern: str, error: type[InherituneError]
) -> None:
    damaged = sorted(run.glob(pattern))[0]
    flip(damaged)
    with pytest.raises(error) as raised:
        list(prove(run))
    assert damaged.name in str(raised.value) or "digest" in str(raised.value)


def test_tokens_of_another_run_are_found(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["tokens"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="the run was trained on 0000"):
        list(prove(run))


def test_what_is_not_there_yet_is_said_and_is_no_error(run: Path) -> None:
    shutil.rmtree(run / "target")
    shutil.rmtree(run / "tokens")
    found = {finding.part: finding.text for finding in prove(run) if not finding.proven}
    assert found == {"tokens": "not there", "target": "not there: the run is not finished"}


def test_what_is_no_directory_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no directory"):
        list(prove(tmp_path / "nowhere"))
    with pytest.raises(SourceError):
        list(prove(tmp_path))
