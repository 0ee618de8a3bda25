"""`verify` proves every kind of directory, and finds every flipped byte."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_recipe import as_file, recipe_of
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import CheckpointError, DataError, InherituneError, SourceError
from inheritune.model_files.directory import open_model
from inheritune.run.execute import execute
from inheritune.run.pretraining import plan_pretraining, pretrain
from inheritune.training import checkpoint_files
from inheritune.verification.directory import verify
from inheritune.verification.run_model import Finding


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
    return [(finding.part, finding.proven) for finding in verify(path).findings]


def test_a_run_is_proven_by_its_tokens_its_checkpoints_and_its_target(finished: Path) -> None:
    saved = list(finished.glob("variants/*/*/checkpoints/step-*"))
    found = parts(finished)
    assert saved
    assert found[: 1 + len(saved)] == [("tokens", True)] + [("checkpoint", True)] * len(saved)
    assert found[1 + len(saved) :] == parts(finished / "target")


def test_the_result_tells_the_kind_and_every_finding_as_it_was_announced(finished: Path) -> None:
    announced: list[Finding] = []
    result = verify(finished / "tokens", on_finding=announced.append)
    assert (result.path, result.kind) == (finished / "tokens", "tokens")
    assert result.findings == tuple(announced) and result.complete
    assert not verify(finished / "target").complete  # without its reference


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
        verify(run)
    assert damaged.name in str(raised.value) or "digest" in str(raised.value)


def test_tokens_of_another_run_are_found(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["tokens"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="the run was trained on 0000"):
        verify(run)


def test_missing_parts_of_a_run_are_reported_and_are_no_error(run: Path) -> None:
    shutil.rmtree(run / "target")
    shutil.rmtree(run / "tokens")
    found = {finding.part: finding.text for finding in verify(run).findings if not finding.proven}
    assert found == {"tokens": "not there", "target": "not there: the run is not finished"}


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no directory"):
        verify(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"no run\.json, manifest\.json"):
        verify(tmp_path)


# -- a run that is being written


def test_tokens_that_are_not_complete_yet_are_not_there(run: Path) -> None:
    (run / "tokens" / "manifest.json").unlink()
    (run / "run.json").write_text('{"format": 1, "tokens": null}')
    assert parts(run)[0] == ("tokens", False)


def test_a_checkpoint_that_the_training_drops_meanwhile_is_no_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, verify = parts(run), checkpoint_files.verify_checkpoint
    last = run / "variants/inherit/9-layers/checkpoints/step-00000001"
    shutil.copytree(checkpoint_of(run), last)

    def dropped(path: Path) -> object:
        if path == last:
            shutil.rmtree(path)
        return verify(path)

    monkeypatch.setattr(checkpoint_files, "verify_checkpoint", dropped)
    assert parts(run) == before and not last.exists()


def test_snapshots_kept_for_tasks_are_verified_too(run: Path) -> None:
    saved = checkpoint_of(run)
    kept = saved.parents[1] / "moments" / "0000000005" / saved.name
    shutil.copytree(saved, kept)
    (saved.parent / "step-by-step.txt").write_text("a note, no checkpoint")
    flip(next(kept.glob("model*.safetensors")))
    with pytest.raises(CheckpointError, match="moments"):
        verify(run)


# -- a training without a recipe


def test_a_training_without_a_recipe_is_proven_as_far_as_it_is_recorded(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sets = ["train.tokens=256", "train.seq_len=16", "train.batch_tokens=128"]
    pretrain(plan_pretraining(str(tiny_reference), tiny_tokens.path, out, sets), out)
    found = dict(parts(out))
    assert {part: found[part] for part in ("tokens", "values", "digests", "reload")} == {
        "tokens": False,
        "values": True,
        "digests": False,
        "reload": True,
    }
    said = CliRunner().invoke(app, ["verify", str(out)])
    assert said.exit_code == 0
    assert said.stderr.splitlines()[-1] == (
        f'next: AutoModelForCausalLM.from_pretrained("{out / "model"}")'
    )
    shutil.rmtree(out / "model")
    assert parts(out)[-1] == ("model", False)


# -- directories of strangers


def checkpoint_of(run: Path) -> Path:
    return next(iter(run.glob("variants/*/*/checkpoints/step-*")))


def listed_anew(checkpoint: Path) -> None:
    """Make the manifest fit the files again, as somebody would who means harm."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        data = (checkpoint / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"position": []}', '{"position": {}}'])
def test_a_garbled_trainer_json_is_damage_and_no_bug(run: Path, text: str) -> None:
    checkpoint = checkpoint_of(run)
    (checkpoint / "trainer.json").write_text(text)
    listed_anew(checkpoint)
    with pytest.raises(CheckpointError, match="is damaged"):
        verify(checkpoint)


@pytest.mark.parametrize(
    "change",
    [{"files": []}, {"files": None}, {"writers": 10**12}, {"writers": 0}, {"format": None}],
)
def test_a_garbled_manifest_is_damage_and_takes_no_time(run: Path, change: dict) -> None:
    checkpoint = checkpoint_of(run)
    path = checkpoint / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="is damaged"):
        verify(checkpoint)


def test_a_manifest_leads_to_no_file_outside(run: Path) -> None:
    checkpoint = checkpoint_of(run)
    path, name = checkpoint / "manifest.json", "../../../../../run.json"
    manifest = json.loads(path.read_text())
    data = (checkpoint / name).read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"run\.json is missing"):
        verify(checkpoint)


@pytest.mark.parametrize("missing", ["trainer.json", "manifest.json"])
def test_a_checkpoint_without_one_of_its_files_is_a_damaged_checkpoint(
    run: Path, missing: str
) -> None:
    checkpoint = checkpoint_of(run)
    (checkpoint / missing).unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        verify(checkpoint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("pattern", "error"),
    [("tokens/train*.bin", DataError), ("variants/*/*/checkpoints/step-*/opt*", CheckpointError)],
)
def test_a_pipe_is_not_waited_for(run: Path, pattern: str, error: type[InherituneError]) -> None:
    path = next(iter(run.glob(pattern)))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(error):
        verify(path.parent)
    with pytest.raises(DataError, match="neither a file nor a directory"):
        verify(run)


@pytest.mark.parametrize("tokens", ["text", 7, [], {"fingerprint": None}, None])
def test_a_garbled_record_of_the_tokens_is_passed_over(run: Path, tokens: object) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"tokens": tokens}))
    assert verify(run).findings[0].part == "tokens"


def test_a_reference_says_nothing_about_tokens(finished: Path, tiny_reference: Path) -> None:
    with pytest.warns(UserWarning, match="is no model: the reference is ignored"):
        verify(finished / "tokens", open_model(str(tiny_reference)))
