"""The command patch: every size between a target and its reference, and one of them written."""

import json
import shlex
import shutil
from itertools import pairwise

import pytest
import tiny_models
import torch
from typer.testing import CliRunner

import inheritune
from inheritune.analysis.layer_scores import MeasuredScores
from inheritune.cli.app import app
from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import inherit
from inheritune.surgery.removal import without
from inheritune.training.models import load_model, save_model

SMALL = ("--windows", 2, "--tokens-per-window", 32)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (f"def function_{i}(a, b):\n    return a * {i} + b\n" for i in range(300))
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A target of layers 0, 2, 4 of five, moved as by a training; and its reference."""
    folder = tmp_path_factory.mktemp("models")
    reference = tiny_models.tiny_reference(folder / "reference", num_hidden_layers=5)
    start = inherit(open_model(str(reference)), [0, 2, 4], folder / "start")
    model = load_model(start.path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_model(model, folder / "target", start.path)
    shutil.copy(start.path / "inherit.json", folder / "target")
    return folder / "target", reference


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def run_next(stderr, out):
    line = next(line for line in stderr.splitlines() if line.startswith("next: "))
    return call(*shlex.split(line.removeprefix("next: inheritune ").replace("OUT", str(out))))


def test_every_size_is_measured_and_the_next_command_writes_one(models, text, tmp_path):
    target, reference = models
    kept = tmp_path / "family.json"
    measure = ("patch", target, reference, "--text", text, *SMALL, "--family", kept)
    code, stdout, stderr = call(*measure, "--json")
    assert code == 0, stderr
    members = json.loads(stdout)["members"]
    assert [member["layers"] for member in members] == [3, 4, 5]
    assert members[0]["layer_map"] == [0, 2, 4] and members[0]["returned"] == []
    for smaller, larger in pairwise(members):
        assert set(smaller["layer_map"]) < set(larger["layer_map"])
        assert len(larger["returned"]) == len(smaller["returned"]) + 1
    assert all(member["kl"] > 0 and member["val_loss"] > 0 for member in members)
    # Nothing is measured again, and no size is left on the disk.
    before = kept.read_bytes()
    code, _, stderr = call(*measure)
    assert code == 0 and kept.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["family.json"]
    code, _, stderr = run_next(stderr, tmp_path / "patched")
    assert code == 0, stderr
    record = json.loads((tmp_path / "patched" / "inherit.json").read_text("utf-8"))
    assert record["layer_map"] == members[1]["layer_map"]
    code, stdout, _ = run_next(stderr, "")  # verify
    assert code == 0


def test_the_loss_of_a_size_is_that_of_the_model_that_is_written(models, text, tmp_path):
    target, reference = models
    options = {"text": text, "windows": 2, "tokens_per_window": 32, "progress": False}
    family = inheritune.family(target, reference, **options)
    for member in family.members[1:]:
        out = tmp_path / str(member.layers)
        inheritune.patch(target, reference, member.layers, out, **options)
        assert json.loads((out / "inherit.json").read_text())["layer_map"] == [*member.layer_map]
        alone = inheritune.family(out, reference, **options) if member.layers < 5 else None
        if alone is not None:
            assert alone.members[0].val_loss == member.val_loss
            assert alone.members[0].kl == member.kl
    assert family.reference_loss > 0


def test_the_dearest_layer_comes_back_first(models, text, monkeypatch):
    target, reference = models
    asked = []

    def divergences(self, cuts):
        asked.append(cuts)
        return [abs(sum(without(5, cut)) - 1) for cut in cuts]  # least without layer 1

    monkeypatch.setattr(MeasuredScores, "divergences", divergences)
    options = {"text": text, "windows": 2, "tokens_per_window": 32, "progress": False}
    members = inheritune.family(target, reference, **options).members
    assert [member.returned for member in members] == [(), (3,), (1, 3)]


def test_windows_are_no_longer_than_the_positions_of_the_reference(models, text, tmp_path):
    out = tmp_path / "family.json"
    code, _, stderr = call("patch", *models, "--text", text, "--windows", 1, "--family", out)
    assert code == 0, stderr
    (family,) = json.loads(out.read_text("utf-8"))["families"]
    assert family["inputs"]["text"]["tokens_per_window"] == 128


@pytest.mark.parametrize(
    ("arguments", "code", "said", "way_out"),
    [
        (["2", "OUT"], 2, "cannot patch 3 layers to 2", "Choose between 4 and 5."),
        (["6", "OUT"], 2, "cannot patch 3 layers to 6", "Choose between 4 and 5."),
        (["1,2", "OUT"], 2, "layer 2 is in the target already", "that it lacks: 1, 3."),
        (["5-5", "OUT"], 2, "there is no layer 5", "Choose among 0 to 4."),
        (["last:2", "OUT"], 2, "does not say which layers to put back", "such as 1, 3."),
        (["4"], 2, "not where to write", "patch TARGET REFERENCE 4 OUT"),
        (["4", "OUT", "--family", "TEXT"], 3, "no family.json", "Leave --family out"),
        (["--family", "TEXT"], 2, "exists, and is no family.json", "Name another file"),
        (["--tokens-per-window", "500"], 2, "has 128 positions", "Ask for 128 tokens"),
        (["--windows", "5000"], 3, "tokens, 320,", "Give more text"),
    ],
)
def test_what_cannot_be_patched_is_refused_with_the_way_out(
    models, text, tmp_path, arguments, code, said, way_out
):
    target, reference = models
    names = {"OUT": tmp_path / "out", "TEXT": text}
    filled = [names.get(word, word) for word in arguments]
    # Of an option that is given twice, the last one holds.
    found, _, stderr = call("patch", target, reference, "--text", text, *SMALL, *filled)
    flat = " ".join(
        stderr.replace(str(target), "TARGET").replace(str(reference), "REFERENCE").split()
    )
    assert found == code and said in flat and way_out in flat, stderr
    assert not (tmp_path / "out").exists()


def test_a_family_of_a_target_that_was_trained_further_is_refused(models, text, tmp_path):
    target, reference = models
    family = tmp_path / "family.json"
    assert call("patch", target, reference, "--text", text, *SMALL, "--family", family)[0] == 0
    shutil.copytree(target, tmp_path / "further")
    model = load_model(target)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(tmp_path / "further")
    arguments = (tmp_path / "further", reference, "4", tmp_path / "out", "--family", family)
    code, _, stderr = call("patch", *arguments)
    assert code == 3 and "its sizes no longer fit" in " ".join(stderr.split())
    assert not (tmp_path / "out").exists()
    # The way out: measured again, the file has both.
    code, _, stderr = call(
        "patch", tmp_path / "further", reference, "--text", text, *SMALL, "--family", family
    )
    assert code == 0 and call("patch", *arguments)[0] == 0
    assert len(json.loads(family.read_text("utf-8"))["families"]) == 2
