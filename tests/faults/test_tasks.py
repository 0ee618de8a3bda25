"""Inject faults into tasks: no lm-eval, data sets out of reach, code, results without numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_recipe
from tiny_tasks import write_tasks
from typer.testing import CliRunner, Result

from inheritune.cli.app import app
from inheritune.errors import InherituneError
from inheritune.recipe.load import RecipeFile
from inheritune.reporting.task_tables import scores_table
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.run_record.measurements import EvaluatedModelRecord


def evaluated(model: Path, out: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", str(model), "--out", str(out), *map(str, options)])


@pytest.mark.fault("E1")
def test_without_lm_eval_it_is_said_what_to_install(
    tiny_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    done = evaluated(tiny_reference, tmp_path, "--tasks", "piqa")
    assert done.exit_code == 4
    assert 'pip install "inheritune[eval]"' in done.stderr


@pytest.mark.fault("E1")
def test_an_unknown_task_is_answered_with_what_was_meant(
    tiny_reference: Path, tmp_path: Path
) -> None:
    done = evaluated(tiny_reference, tmp_path, "--tasks", "lambada_opneai")
    assert done.exit_code == 2
    assert "there is no task 'lambada_opneai' in lm-eval." in done.stderr
    assert "Did you mean lambada_openai" in done.stderr


@pytest.mark.slow
@pytest.mark.fault("E1")
def test_a_data_set_that_is_not_here_offline_is_named_with_what_to_fetch(
    tiny_reference: Path, tmp_path: Path
) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "inheritune", "evaluate", str(tiny_reference)]
    command += ["--tasks", "piqa", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)
    assert done.returncode == 4, done.stderr
    assert "baber/piqa" in done.stderr and "Traceback" not in done.stderr


def tiny_run(model: Path, text: Path, tasks: list[str]) -> RecipeFile:
    recipe = tiny_recipe.recipe_of(
        model,
        text,
        train={"tokens": 256},
        grow={"add": 0},
        variants={"inherit": {"start": "inherit"}},
        evaluate={"tasks": tasks},
    )
    return tiny_recipe.as_file(recipe)


@pytest.mark.fault("E1")
def test_a_run_stands_although_its_tasks_cannot_be_asked(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(tiny_run(tiny_reference, tiny_text, []), tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = execute(tiny_run(tiny_reference, tiny_text, ["piqa"]), tmp_path / "tiny")
    record = Run(tmp_path / "tiny").read()
    assert record["exit_code"] == 0
    assert result.val_loss == record["result"]["val_loss"]
    assert record["status"] == "done"
    assert any("lm-eval, which is not installed" in note for note in record["notes"])
    assert (tmp_path / "tiny" / "report" / "index.html").exists()


@pytest.mark.parametrize(("task", "code"), [("piqa", 4), ("piqq", 2)])
@pytest.mark.fault("E1")
def test_tasks_that_cannot_be_asked_are_refused_before_anything_is_trained(
    task: str,
    code: int,
    tiny_reference: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if code == 4:
        monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InherituneError) as refused:
        execute(tiny_run(tiny_reference, tiny_text, [task]), tmp_path / "tiny")
    assert refused.value.exit_code == code
    assert not (tmp_path / "tiny" / "tokens").exists()


@pytest.mark.fault("E2")
def test_a_task_directory_with_code_is_refused_unless_it_is_allowed(
    tiny_reference: Path, tmp_path: Path
) -> None:
    folder, mark = tmp_path / "mine", tmp_path / "PWNED"
    write_tasks(folder, "piqa")
    (folder / "PWNED.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "def text(doc):\n    return doc['goal']\n"
    )
    description = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(folder / "piqa.jsonl")}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in description.items()]
    lines += ["doc_to_text: !function PWNED.text", "metric_list:", "  - metric: acc"]
    (folder / "mine.yaml").write_text("\n".join(lines) + "\n")
    for entry in (folder, folder / "mine.yaml"):
        done = evaluated(tiny_reference, tmp_path / "out", "--tasks", entry)
        assert done.exit_code == 2
        assert "which may run code: mine.yaml has !function" in done.stderr
        assert not mark.exists()
    done = evaluated(tiny_reference, tmp_path / "out", "--tasks", folder, "--allow-task-code")
    assert done.exit_code == 0, done.stderr
    assert mark.exists()  # the test above sees what it is about


@pytest.mark.fault("E3")
def test_a_result_without_a_number_is_a_dash_and_a_footnote() -> None:
    given = {"task": "piqa", "metrics": {"acc": {"value": 0.9, "se": None}}}
    lacking = {"task": "piqa", "metrics": {"acc": {"value": None, "se": None}}}
    table = scores_table(
        [
            EvaluatedModelRecord.model_validate(m)
            for m in [{"model": "a", "scores": [given]}, {"model": "b", "scores": [lacking]}]
        ]
    )
    assert [row[1] for row in table.rows] == ["90.00", "—"]
    assert "b: no acc of piqa." in table.notes


@pytest.mark.fault("E4")
def test_one_task_of_five_fails_and_four_are_kept(tiny_reference: Path, tmp_path: Path) -> None:
    data = write_tasks(tmp_path / "tasks")
    (data / "arc_easy.jsonl").write_text('{"id": "0", "question": "no choices?"}\n')
    names = "piqa,winogrande,arc_easy,lambada_openai,wikitext"
    out = tmp_path / "out"
    done = evaluated(tiny_reference, out, "--tasks", names, "--task-data", data)
    assert done.exit_code == 4
    assert "1 of the tasks failed (arc_easy)" in done.stderr
    kept = {path.name.split("-")[0] for path in out.glob("*.json")}
    assert kept == set(names.split(",")) - {"arc_easy"}
