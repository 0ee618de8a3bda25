"""How `run` tells a recipe from a model."""

from pathlib import Path

import pytest

from inheritune.errors import RecipeError
from inheritune.recipe.presets import preset_path
from inheritune.recipe.sections import recipe_path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model_directory(name: str) -> None:
    Path(name).mkdir()
    Path(name, "config.json").write_text("{}")


@pytest.mark.parametrize("name", ["there.yaml", "nowhere.yaml", "x/nowhere.yml", "notes"])
def test_a_file_is_a_recipe_and_so_is_a_missing_one_named_yaml(name: str) -> None:
    Path("there.yaml").write_text("")
    Path("notes").write_text("")
    assert recipe_path(name) == Path(name)


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-0.6B", "gpt2", "embedded:demo", "model", "model.yaml", "", "a" * 5000, "a\0b"],
)
def test_a_directory_or_an_id_is_a_model(name: str) -> None:
    model_directory("model")
    model_directory("model.yaml")
    assert recipe_path(name) is None


def test_a_preset_is_a_recipe_unless_a_file_has_its_name() -> None:
    assert recipe_path("demo") == preset_path("demo")
    Path("demo").write_text("name: mine\n")
    assert recipe_path("demo") == Path("demo")


def test_a_preset_that_is_also_a_model_directory_is_said_to_be_both() -> None:
    Path("distillation").mkdir()
    assert recipe_path("distillation") == preset_path("distillation")
    model_directory("demo")
    with pytest.raises(RecipeError, match="demo is both a preset and a model directory") as caught:
        recipe_path("demo")
    assert "./demo" in caught.value.hint
    assert recipe_path("./demo") is None
