"""The commands that messages tell the user to give next are whole and right."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_recipe import fields_of
from typer.testing import CliRunner

from inheritune.cli import next_step
from inheritune.cli.app import app
from inheritune.cli.next_step import command, same_command
from inheritune.system.processes import MEETING_FILE


@pytest.fixture
def recipe(tiny_reference, tiny_text, tmp_path, monkeypatch):
    path = tmp_path / "my recipe.yaml"
    fields = fields_of(tiny_reference, tiny_text, report={"prompts": []})
    del fields["name"]  # the file's, then
    path.write_text(json.dumps(fields))
    monkeypatch.chdir(tmp_path)
    return path


def test_a_command_is_quoted_and_leaves_out_what_was_not_given():
    assert command("run", "my recipe.yaml", set=["a=b c", "d={}"], scale=1e-6, public=False) == (
        "inheritune run 'my recipe.yaml' --set 'a=b c' --set 'd={}' --scale 1e-06"
    )
    assert command("push", None, Path("x"), dry_run=True, runs=Path("runs")) == (
        "inheritune push x --dry-run"
    )
    assert command("demo", runs=Path("else where")) == "inheritune demo --runs 'else where'"


def test_the_same_command_is_the_one_that_was_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inheritune", "run", "r.yaml", "--from", "x y", "--json"])
    assert same_command() == "inheritune run r.yaml --from 'x y' --json"
    assert same_command(["--from"]) == "inheritune run r.yaml --json"
    monkeypatch.setattr(sys, "argv", ["inheritune", "run", "--from=x", "r.yaml"])
    assert same_command(["--from"]) == "inheritune run r.yaml"


def test_a_worker_names_the_processes_that_its_own_arguments_do_not(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inheritune", "run", "r.yaml"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert same_command() == ""  # torchrun's command is not known
    monkeypatch.setenv(MEETING_FILE, "store")
    assert same_command() == "inheritune run r.yaml --processes 2"
    assert next_step.started_processes() == 2


def test_an_override_replaces_the_one_of_the_same_key():
    assert next_step.with_sets(["a=1", "b=2"], ["a=3"]) == ["b=2", "a=3"]


def invoke(words):
    return CliRunner().invoke(app, words)


def test_prepare_train_and_plan_keep_sets_and_runs(recipe):
    options = ["--set", "train.seed=3", "--runs", "my runs"]
    kept = f"next: inheritune run {shlex.quote(str(recipe))} --set train.seed=3 --runs 'my runs'"
    for name in ("plan", "prepare", "train"):
        done = invoke([name, str(recipe), *options])
        assert done.exit_code == 0, done.output
        assert done.stderr.strip().splitlines()[-1] == kept


def test_a_plan_of_a_model_keeps_its_estimate(tiny_reference):
    options = ["--tokens", "1M", "--device", "h100", "--devices", "2"]
    done = invoke(["plan", str(tiny_reference), *options])
    words = shlex.split(done.stderr.strip().splitlines()[-1].removeprefix("next: "))
    assert words[:4] == ["inheritune", "plan", str(tiny_reference), "2"]
    assert " ".join(options[:4]) in " ".join(words) and words[-1] == "2"
    assert invoke(words[1:]).exit_code == 0


@pytest.mark.slow
def test_a_miss_names_ways_on_whose_commands_run(recipe):
    options = ["--set", "grow.max_rounds=1", "--set", "variants={inherit: {start: inherit}}"]
    options += ["--set", "reference.model=embedded:demo", "--set", "train.eval_every=640"]
    options += ["--set", "data.source=stdlib", "--set", "data.tokens=20K"]
    options += ["--set", "data.val_fraction=0.005"]
    done = invoke(["run", str(recipe), *options, "--runs", "r"])
    assert done.exit_code == 6, done.output
    lines = done.stderr.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  inheritune run")]
    named = [line.split()[:2] for line in lines if line.startswith(("more ", "distillation "))]
    assert sorted(named) == [["distillation", "from"], ["more", "layers,"], ["more", "tokens,"]]
    assert len(commands) == 3 and lines[-1].startswith("next: inheritune run ")
    for words in commands:
        assert "reference.model=embedded:demo" in words and words[-2:] == ["--runs", "r"]
        assert sum(word.startswith("grow.max_rounds=") for word in words) == 1
        again = invoke(words[1:])
        assert again.exit_code in (0, 6), again.output
    assert {path.name for path in Path("r").iterdir() if path.is_dir()} == {
        "my-recipe",
        "my-recipe-2x-tokens",
        "my-recipe-distilled",
    }


@pytest.mark.slow
def test_ctrl_c_says_where_it_saved_and_how_to_continue(recipe, tmp_path):
    words = ["run", str(recipe), "--set", "train.tokens=64K", "--set", "data.allow_repeat=true"]
    words += ["--set", "train.compile=off", "--set", "grow.add=0", "--runs", "r"]
    words += ["--set", "train.eval_every=64K"]  # stopped in a validation, it says something else
    metrics = tmp_path / "r/my-recipe/variants/inherit/2-layers/metrics.jsonl"
    program = [sys.executable, "-m", "inheritune", *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") > 20:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.05)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: stopped by SIGINT; saved at step ")
    assert "of 500 steps (" in last and " tokens) of inherit" in last
    assert last.endswith(f"Run the same command to continue: {shlex.join(['inheritune', *words])}")
