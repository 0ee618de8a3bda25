"""A run with everything on writes into its own directory, and nowhere else on the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_recipe
import tiny_tasks
from ruamel.yaml import YAML

from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.steps.training import compiler_files
from inheritune.training.loop import train

COMPILER_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}


@pytest.mark.slow
@pytest.mark.fault("D32")
def test_a_run_with_tasks_leaves_nothing_outside_of_its_directory(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    home, shared = tmp_path / "home", tmp_path / "shared"
    home.mkdir()
    shared.mkdir()
    tasks = tiny_tasks.write_tasks(tmp_path / "questions", "arc_easy", "lambada_openai")
    fields = tiny_recipe.fields_of(
        tiny_reference,
        tiny_text,
        grow={"add": 0},
        evaluate={"tasks": ["arc_easy", "lambada_openai"], "task_data": str(tasks)},
        report={"prompts": ["the"], "sample_tokens": 4},
    )
    with (tmp_path / "recipe.yaml").open("w") as file:
        YAML().dump(fields, file)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(shared), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "inheritune", "run", "recipe.yaml", "--runs", "runs"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 6), done.stderr
    scores = Run(tmp_path / "runs" / "tiny").record().evaluation
    assert scores is not None and not scores.failures
    outside = [path for folder in (home, shared) for path in folder.rglob("*") if path.is_file()]
    assert outside == []
    assert {path.name for path in tmp_path.iterdir()} == {
        *("home", "shared", "questions", "recipe.yaml", "runs")
    }
    assert not list((tmp_path / "runs" / "tiny" / "evaluation").glob(".*"))


@pytest.mark.fault("D32")
def test_the_compiler_keeps_its_files_in_the_run_unless_the_user_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    for name in COMPILER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with compiler_files(tmp_path / name):
            assert Path(cache_dir()).is_relative_to(tmp_path / name)
            assert Path(triton_cache_dir(0)).is_relative_to(tmp_path / name)
        assert not list((tmp_path / name).iterdir())
    assert not COMPILER_VARIABLES & os.environ.keys()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    with compiler_files(tmp_path / "one"):
        assert Path(cache_dir()) == tmp_path / "mine"


@pytest.mark.fault("D32")
def test_a_place_that_torch_chose_by_itself_is_not_taken_for_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing torch._dynamo sets the variable, as importing a model of transformers does."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "shared"))
    for name in COMPILER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    chosen = [cache_dir(), triton_cache_dir(0)]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == chosen[0]
    assert all(Path(path).is_relative_to(tmp_path / "shared") for path in chosen)
    (tmp_path / "run").mkdir()
    with compiler_files(tmp_path / "run"), compiler_files(tmp_path / "run"):
        assert Path(cache_dir()).is_relative_to(tmp_path / "run")
        assert Path(triton_cache_dir(0)).is_relative_to(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.fault("D32")
def test_a_run_is_given_to_the_compiler_as_a_new_and_empty_directory(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COMPILER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    root, seen = tmp_path / "run", []
    Run.create(root)
    for planted in (".compiled", ".compiled.tmp-01234567"):  # names of earlier versions, and ours
        (root / planted / "fxgraph").mkdir(parents=True)
        (root / planted / "fxgraph" / "code").write_bytes(b"cos\nsystem\n")

    def look(*arguments: object, **options: object) -> object:
        directory = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        seen.append((directory, directory.stat().st_mode & 0o777, list(directory.iterdir())))
        assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(directory)
        return train(*arguments, **options)

    monkeypatch.setattr("inheritune.training.loop.train", look)
    recipe = tiny_recipe.recipe_of(tiny_reference, tiny_text, grow={"add": 0})
    execute(recipe, root)
    directory = seen[0][0]
    assert {*map(repr, seen)} == {repr((directory, 0o700, []))}  # one for all trainings of a start
    assert directory.parent == root and not directory.exists()
    assert directory.name not in (".compiled", ".compiled.tmp-01234567")
