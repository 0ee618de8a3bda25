"""The command `inherit`: selections as the recipe spells them, and options of older versions."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inheritune.cli.app import app


def inherit(reference: Path, layers: str, out: Path, *options: str):
    return CliRunner().invoke(app, ["inherit", str(reference), layers, str(out), *options])


def record_of(out: Path) -> dict:
    return json.loads((out / "inherit.json").read_text())


@pytest.mark.parametrize(
    ("layers", "kept"),
    [("2", [0, 1]), ("first+last:3", [0, 1, 3]), ("strided:2", [0, 3]), ("1-2", [1, 2])],
)
def test_the_command_takes_every_selection(tiny_reference, tmp_path, layers, kept):
    done = inherit(tiny_reference, layers, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert record_of(tmp_path / "out")["layer_map"] == kept


def test_a_way_that_needs_a_measurement_is_refused_with_what_makes_it(tiny_reference, tmp_path):
    done = inherit(tiny_reference, "lazy:2", tmp_path / "out")
    assert done.exit_code == 2
    assert "lazy needs a measurement" in done.stderr and "in a recipe" in done.stderr


def test_linked_targets_are_gone_and_the_error_says_what_to_use(tiny_reference, tmp_path):
    done = inherit(tiny_reference, "2", tmp_path / "out", "--mode", "link")
    assert done.exit_code == 2
    assert "--mode link" in done.stderr and "Leave it out" in done.stderr
    assert inherit(tiny_reference, "2", tmp_path / "out", "--mode", "copy").exit_code == 0


@pytest.mark.parametrize("option", ["--no-class-check", "--no-gate"])
def test_the_class_check_can_be_left_out_under_both_names(tiny_reference, tmp_path, option):
    assert inherit(tiny_reference, "2", tmp_path / "out", option).exit_code == 0
    assert record_of(tmp_path / "out")["check"] == "not checked: --no-class-check"
