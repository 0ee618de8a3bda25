"""Listing runs, and deleting what finished ones no longer need."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_recipe import as_file, recipe_of
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.errors import DataError, RecipeError
from inheritune.run.execute import execute
from inheritune.run.listing import clean_runs, list_runs
from inheritune.run_directory import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_reference, tiny_text):
    """A directory of one finished run, whose target keeps its end to grow from; to be copied."""
    recipe = recipe_of(
        tiny_reference,
        tiny_text,
        grow={"weights": "keep"},
        variants={"inherit": {"start": "inherit"}},
    )
    runs = tmp_path_factory.mktemp("finished") / "runs"
    execute(as_file(recipe), runs / "tiny")
    return runs


@pytest.fixture
def runs(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def files_in(directory):
    return {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def test_a_finished_run_is_listed_and_cleaned_without_losing_a_result(runs):
    root = runs / "tiny"
    (entry,) = list_runs(runs).runs
    record = Run(root).record()
    assert (entry.run, entry.state) == (root, record.result.outcome)
    assert (entry.layers, entry.val_loss) == (record.result.layers, record.result.val_loss)
    before = files_in(root)
    assert entry.bytes == sum(before.values())

    freed = clean_runs([root])[str(root)]
    after = files_in(root)
    gone = before.keys() - after.keys()
    assert freed == entry.spare_bytes == sum(before[path] for path in gone) > 0
    assert {path.relative_to(root).parts[3] for path in gone} == {"checkpoints"}
    assert list_runs(runs).runs[0].spare_bytes == 0
    assert clean_runs([root]) == {str(root): 0}


def test_a_run_that_is_not_finished_keeps_its_checkpoints(runs):
    root = runs / "tiny"
    record = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps(record | {"status": "interrupted", "result": None}))
    before = files_in(root)
    with pytest.raises(RecipeError, match=r"not finished.*continues from its checkpoints"):
        clean_runs([root])
    assert files_in(root).keys() == before.keys()
    assert list_runs(runs).runs[0].state == "interrupted"


@pytest.mark.parametrize("place", ["variants/wandb", "variants/inherit/wandb", "wandb/variants"])
def test_clean_deletes_nothing_outside_of_the_run(place, runs, tmp_path):
    root, outside = runs / "tiny", tmp_path / "outside"
    for name in ("checkpoints", "master"):
        (outside / "x" / name).mkdir(parents=True)
        (outside / "x" / name / "mine").write_text("mine")
    (root / place).mkdir(parents=True)
    (root / place / "link").symlink_to(outside / "x")
    with suppress(DataError):  # below `wandb` of a training, it is that library's
        clean_runs([root])
    assert sorted(path.name for path in outside.rglob("mine")) == ["mine", "mine"]
    for name in ("checkpoints", "master"):
        assert (outside / "x" / name / "mine").read_text() == "mine"


def test_a_link_to_wandbs_cache_is_no_reason_to_refuse(runs, tmp_path):
    root = runs / "tiny"
    for training in (root, root / "reference", root / "variants" / "inherit" / "2-layers"):
        (training / "wandb").mkdir(parents=True, exist_ok=True)
        (training / "wandb" / "debug.log").symlink_to(tmp_path)
    assert list_runs(runs).runs[0].state != "not read"
    (root / "variants" / "wandb").mkdir()
    (root / "variants" / "wandb" / "x").symlink_to(tmp_path)
    assert list_runs(runs).runs[0].state == "not read"


def test_a_run_of_which_only_steps_were_done_keeps_its_checkpoints(runs):
    root = runs / "tiny"
    record = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps(record | {"result": None}))  # as `prepare` ends
    assert list_runs(runs).runs[0].spare_bytes == 0
    with pytest.raises(RecipeError, match="only steps of it"):
        clean_runs([root])


def test_a_target_that_has_not_matched_can_still_grow_after_clean(runs):
    root = runs / "tiny"
    record = json.loads((root / "run.json").read_text())
    record["result"]["outcome"] = "not_matched"
    (root / "run.json").write_text(json.dumps(record))
    before = files_in(root)
    assert clean_runs([root]) == {str(root): 0}
    assert files_in(root).keys() == before.keys()


def test_clean_looks_at_all_runs_before_it_deletes_anything(runs, monkeypatch):
    (runs / "other").mkdir()
    before = files_in(runs)
    with pytest.raises(DataError):
        clean_runs([runs / "tiny", runs / "other"])
    assert files_in(runs).keys() == before.keys()
    monkeypatch.chdir(runs / "tiny")
    assert sum(clean_runs([Path()]).values()) > 0


def test_what_is_no_run_is_neither_listed_nor_cleaned(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("[")
    assert [(e.run.name, e.state) for e in list_runs(tmp_path).runs] == [("broken", "not read")]
    for name in ("notes", "broken"):
        with pytest.raises(DataError):
            clean_runs([tmp_path / name])
    with pytest.raises(DataError, match=r"is no run: it has no run\.json\. Name the directory"):
        clean_runs([tmp_path / "notes"])
    with pytest.raises(DataError, match="there is no directory"):
        list_runs(tmp_path / "missing")


def test_the_commands_print_a_table_and_what_was_freed(runs):
    listed = CliRunner().invoke(app, ["runs", str(runs)])
    assert "tiny" in listed.stdout and f"next: inheritune clean {runs / 'tiny'}" in listed.stderr
    (row,) = json.loads(CliRunner().invoke(app, ["runs", str(runs), "--json"]).stdout)
    cleaned = CliRunner().invoke(app, ["clean", str(runs / "tiny"), "--json"])
    assert json.loads(cleaned.stdout) == {str(runs / "tiny"): row["spare_bytes"]}
    assert CliRunner().invoke(app, ["clean", str(runs)]).exit_code == 3
    assert CliRunner().invoke(app, ["runs", str(runs / "none")]).exit_code == 3
