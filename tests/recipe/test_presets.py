from pathlib import Path

import pytest

from inheritune.errors import RecipeError
from inheritune.recipe import presets
from inheritune.recipe.presets import commented_recipe, preset_names, preset_path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package directory as a wheel lays it out, with two recipes inside."""
    recipes = tmp_path / "inheritune" / "recipes"
    recipes.mkdir(parents=True)
    (recipes / "demo.yaml").write_bytes("# for you: €\nname: demo\n".encode())
    (recipes / "gpt2-medium.yaml").write_text("name: gpt2-medium\n")
    (recipes / "notes.txt").write_text("no recipe\n")
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "inheritune" / "recipe" / "presets.py"))
    return recipes


def test_presets_are_the_yaml_files_of_the_recipes(installed: Path) -> None:
    assert preset_names() == ["demo", "gpt2-medium"]
    assert preset_path("demo") == installed / "demo.yaml"


def test_preset_keeps_its_comments(installed: Path) -> None:
    assert commented_recipe("demo") == "# for you: €\nname: demo\n"


def test_checkout_has_its_recipes_at_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "inheritune"
    package.mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "toy.yaml").write_text("name: toy\n")
    monkeypatch.setattr(presets, "__file__", str(package / "recipe" / "presets.py"))
    assert preset_path("toy") == tmp_path / "recipes" / "toy.yaml"


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("dmeo", "Did you mean demo?"),
        ("xyz", "Choose one of: demo, gpt2-medium."),
        ("../recipes/demo", "demo"),
        ("", "Choose one of"),
        ("notes.txt", "Choose one of"),
    ],
)
def test_unknown_preset_is_answered_with_the_known(
    installed: Path, name: str, way_out: str
) -> None:
    with pytest.raises(RecipeError, match="unknown preset") as caught:
        preset_path(name)
    assert way_out in caught.value.hint
