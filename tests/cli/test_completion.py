"""A shell completes presets, devices, recipes, runs, models and keys, and loads nothing heavy."""

import os
import subprocess
import sys

import pytest

from inheritune.cli.completion import recipe_keys
from inheritune.recipe.messages import _keys
from inheritune.recipe.presets import preset_names
from inheritune.recipe.yaml_tree import dotted
from inheritune.system.devices import DEVICES


@pytest.fixture
def complete(tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/run.json").write_text("{}")
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text("{}")

    def complete(words, shell="bash"):
        asked = {
            "_INHERITUNE_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": words,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "inheritune"],
            env=os.environ | asked,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported & {"torch", "transformers", "numpy", "ruamel"}
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("inheritune init --preset ", preset_names()),
        ("inheritune plan x --device h", [name for name in DEVICES if name.startswith("h")]),
        ("inheritune prepare ", ["mine.yaml"]),
        ("inheritune plan m", ["mine.yaml"]),
        ("inheritune run demo-d", ["demo-distillation"]),
        ("inheritune run ", ["embedded:demo", "mine.yaml", "runs/mine", "small"]),
        ("inheritune report ", ["runs/mine"]),
        ("inheritune clean runs/", ["runs/mine"]),
        ("inheritune inherit ", ["embedded:demo", "runs/mine", "small"]),
        ("inheritune run mine.yaml --set train.le", ["train.learning_rate="]),
        ("inheritune run mine.yaml --allow-change train.to", ["train.tokens"]),
    ],
)
def test_bash_completes(complete, words, values):
    assert complete(words) == values


def test_zsh_and_fish_complete_keys_too(complete):
    words = "inheritune run mine.yaml --set train.le"
    assert '"train.learning_rate="' in " ".join(complete(words, "zsh"))
    assert complete(words, "fish") == ["train.learning_rate="]


def test_the_keys_are_those_of_the_recipe():
    plain = {dotted(key) for key in _keys() if not {"<name>", 0} & {*key}}
    sections = {key for key in plain if any(other.startswith(f"{key}.") for other in plain)}
    assert {*recipe_keys()} == plain - sections
