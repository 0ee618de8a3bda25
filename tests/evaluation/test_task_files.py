import json
from pathlib import Path

import pytest

from inheritune.errors import DataError, MachineError, RecipeError
from inheritune.evaluation.harness import load_questions
from inheritune.evaluation.suites import SUITES, VAL_LOSS, tasks_with_shots, unknown_task
from inheritune.evaluation.task_descriptions import TaskDescription, task_descriptions
from inheritune.evaluation.task_files import (
    LocalData,
    local_data,
    own_task,
    stock_file,
    write_description,
)


def test_the_tasks_of_the_suites_are_found_without_an_index() -> None:
    for suite in SUITES.values():
        for task in suite.tasks:
            if task.name != VAL_LOSS:
                file = stock_file(task.name)
                assert file is not None
                assert task.name.encode() in file.read_bytes()


def test_any_other_task_is_found_by_looking_at_every_description() -> None:
    found = stock_file("openbookqa")
    assert found is not None and found.parent.name == "openbookqa"
    assert stock_file("no_such_task") is None


def test_a_suite_stands_for_its_tasks_each_once_with_its_shots() -> None:
    asked = tasks_with_shots(["full-data", "lambada_openai", "low-data", "sciq"])
    assert asked[:3] == [("val_loss", None), ("wikitext", 0), ("lambada_openai", 0)]
    assert ("mmlu", 5) in asked
    assert asked[-1] == ("sciq", None)
    assert len(asked) == len({task for task, _ in asked}) == 14
    assert tasks_with_shots(["low-data"], 3)[5] == ("mmlu", 3)


def test_a_misspelt_task_is_answered_with_what_was_meant() -> None:
    error = unknown_task("pica", ["piqa", "sciq"])
    assert str(error) == "there is no task 'pica' in lm-eval. Did you mean piqa?"
    assert error.exit_code == 2
    assert "Did you mean low-data?" in str(unknown_task("lowdata", []))


def test_a_directory_of_the_users_own_is_refused_and_says_where_the_code_is(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.yaml").write_text("task: mine\ndoc_to_text: !function PWNED.run\n")
    with pytest.raises(RecipeError, match=r"may run code: a.yaml has !function"):
        own_task(str(folder), allow_code=False)
    assert own_task(str(folder), allow_code=True) == folder.resolve()
    assert own_task("piqa", allow_code=False) is None
    with pytest.raises(RecipeError, match=r"there is no task directory \./gone"):
        own_task("./gone", allow_code=True)


def test_local_questions_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a"}\n')
    first = local_data(tmp_path, "piqa")
    assert first is not None and first.examples is None
    (tmp_path / "piqa.examples.jsonl").write_text('{"goal": "b"}\n')
    second = local_data(tmp_path, "piqa")
    assert second is not None and second.examples is not None
    assert first.digest != second.digest
    assert local_data(tmp_path, "sciq") is None
    assert local_data(None, "piqa") is None
    with pytest.raises(RecipeError, match="there is no directory"):
        local_data(tmp_path / "gone", "piqa")
    (tmp_path / "sciq.jsonl").write_text("<html>\n")
    with pytest.raises(DataError, match=r"sciq\.jsonl does not begin with a JSON object"):
        local_data(tmp_path, "sciq")


def test_a_description_is_lm_evals_own_but_for_its_questions(tmp_path: Path) -> None:
    data = LocalData(tmp_path / "arc_easy.jsonl", None, "0")
    config = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
    path = write_description("arc_easy", Path("/stock.yaml"), config, data, 0, tmp_path)
    assert json.loads(path.read_text()) == {
        "include": "/stock.yaml",
        "task": "arc_easy",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "arc_easy.jsonl")},
            "cache_dir": str(tmp_path / "datasets"),
        },
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
    }
    with pytest.raises(RecipeError, match=r"there is no arc_easy\.examples\.jsonl"):
        write_description("arc_easy", Path("/stock.yaml"), config, data, 5, tmp_path)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory ``own`` with two tasks and a group of them, beside which one stands."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("story", "roll"):
        (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n")
    (folder / "group.yaml").write_text("group: both\ntask:\n- story\n- roll\n")
    monkeypatch.chdir(tmp_path)
    return folder


def described(name: str, out: Path, allow_code: bool = True) -> list[str]:
    with task_descriptions([(name, None)], None, allow_code, out) as descriptions:
        return [description.task for description in descriptions]


@pytest.mark.parametrize("name", ["own", "./own", "own/"])
def test_a_directory_of_tasks_is_each_task_once_however_it_is_written(
    own: Path, tmp_path: Path, name: str
) -> None:
    assert described(name, tmp_path / "out") == ["roll", "story"]
    with pytest.raises(RecipeError, match="is a task of your own, which may run code"):
        described(name, tmp_path / "out", allow_code=False)
    assert described("own/group.yaml", tmp_path / "out") == ["both"]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from lm_eval.tasks import TaskManager

    def fail(*_: object) -> None:
        try:
            raise FileNotFoundError(2, "No such file or directory", "/nowhere/home")
        except FileNotFoundError as error:
            raise RuntimeError("it failed") from error

    monkeypatch.setattr(constants, "HF_HOME", "/nowhere/home/.cache/huggingface")
    monkeypatch.setattr(TaskManager, "load", fail)
    task = TaskDescription("piqa", None, "", "piqa", (), None, "piqa")
    with pytest.raises(MachineError) as caught:
        load_questions(task)
    assert caught.value.hint.startswith("HF_HOME is /nowhere/home/.cache/huggingface: set it to")
