"""Every command refuses a wrong value in one to three lines, and leaves the files as they were."""

import json
import shlex

import pytest
import typer
from tiny_recipe import fields_of
from typer.testing import CliRunner

from inheritune.cli.app import app

# A command, with R for a recipe, M for a model, T for a text; then its exit code.
REFUSALS = {
    "run nowhere.yaml": 2,
    "run R --set train.tokens=many": 2,
    "run R --set inherit.layers=9": 2,
    "run R --set reference.model=./nowhere": 3,
    "run R --set data.source=nowhere.txt": 3,
    "run R --from nowhere": 2,
    "run R --allow-change train.seq_len": 2,
    "run R --scale 0": 2,
    "demo --set no.such=1": 2,
    "demo --text nowhere.txt": 3,
    "init --preset nothing": 2,
    "plan ./nowhere": 3,
    "plan .": 3,
    "plan M 9": 2,
    "plan M --device abacus": 2,
    "inherit ./nowhere 2 out": 3,
    "inherit M 9 out": 2,
    "inherit M 2 out --dtype int4": 2,
    "inherit M 2 out --parts tail": 2,
    "select ./nowhere --layers 2 --text nowhere.txt --out out.json": 3,
    "select M --layers 9 --text nowhere.txt --out out.json": 2,
    "select M --layers 2 --text nowhere.txt --out out.json": 3,
    "prepare nowhere.yaml": 2,
    "prepare R --set data.source=nowhere.txt": 3,
    "prepare R --set reference.model=./nowhere": 3,
    "prepare R --worker 3/2": 2,
    "prepare R --worker 1/2 --set data.source=nowhere.txt": 3,
    "prepare --worker 1/2": 2,
    "prepare R --worker 1/2 --from-bin T": 2,
    "prepare --from-bin nowhere.bin --tokenizer M --out out": 3,
    "prepare --from-bin T --tokenizer ./nowhere --out out": 3,
    "train nowhere.yaml": 2,
    "train R --variant nothing": 2,
    "train R --layers 9": 2,
    "train R --set data.source=nowhere.txt": 3,
    "train M nowhere out": 3,
    "train ./nowhere nowhere out": 3,
    "evaluate": 2,
    "evaluate M": 2,
    "evaluate ./nowhere --tasks piqa": 3,
    "evaluate M --tasks no_such_task": 2,
    "evaluate M --tasks piqa --task-data nowhere": 2,
    "evaluate M --tasks piqa --dtype int4": 2,
    "evaluate M --text nowhere.txt": 3,
    "evaluate M --tokens nowhere": 3,
    "evaluate --fetch-only": 2,
    "evaluate --fetch-only --tasks no_such_task": 2,
    "analyze ./nowhere": 3,
    "analyze M --text nowhere.txt": 3,
    "analyze M --out .": 2,
    "convert nowhere out": 3,
    "convert M out": 3,
    "evaluate M --speed --out R": 2,
    "run M --text T --tokens 1K --from nowhere": 2,
    "run M --text T --tokens 1K --runs R": 2,
    "run M --text T --minutes 1e300": 2,
    "init --list --schema": 2,
    "init --reference M --text T --preset demo": 2,
    "push M --repo-id 'a b'": 2,
    "generate ./nowhere hello": 3,
    "generate M hello --max-tokens 0": 2,
    "report nowhere": 3,
    "report nowhere elsewhere": 3,
    "watch nowhere": 3,
    "clean nowhere": 3,
    "patch ./nowhere M 3 out": 3,
    "push nowhere --repo-id me/small": 3,
    "verify nowhere": 3,
    "inspect nowhere": 3,
}


@pytest.mark.parametrize(("line", "code"), REFUSALS.items(), ids=REFUSALS)
def test_a_refused_command_says_so_and_leaves_nothing(
    line, code, tiny_reference, tiny_text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(fields_of(tiny_reference, tiny_text)))
    places = {"R": recipe, "M": tiny_reference, "T": tiny_text}
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, [str(places.get(w, w)) for w in shlex.split(line)])
    said = done.stderr[done.stderr.rindex("error: ") :].strip().splitlines()
    assert (done.exit_code, len(said) <= 3) == (code, True), done.output
    assert "Traceback" not in done.output and "Errno" not in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_every_command_that_takes_a_value_is_tried():
    names = {line.split()[0] for line in REFUSALS}
    assert {*typer.main.get_command(app).commands} - names == {"doctor", "runs"}
