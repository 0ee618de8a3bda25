"""The costs that `init --list` shows are those that `plan` computes.

After a change that is meant: ``python tests/recipe/test_preset_costs.py --write``
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from inheritune.planning.recipe_plan import plan_recipe
from inheritune.recipe.data import TextSource
from inheritune.recipe.load import read_recipe
from inheritune.recipe.presets import preset_costs, preset_names, preset_path
from inheritune.recipe.schema import Recipe

COSTS = preset_path("demo").with_name("costs.json")
STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "checkpoints" / "stories260K"


def text_of(recipe: Recipe) -> str:
    """Name the text: a dataset without its owner, a file, or the folder of a pattern."""
    first = recipe.data.source[0] if isinstance(recipe.data.source, list) else recipe.data.source
    first = first.source if isinstance(first, TextSource) else first
    first = first[0] if isinstance(first, list) else first
    return first.split("/")[0 if "*" in first else -1].partition(".")[0]


def cost_of(name: str, root: Path) -> dict[str, Any]:
    sets = [f"reference.model={STORIES}"] if name == "stories260k" else []
    recipe = read_recipe(preset_path(name), sets).recipe
    plan = plan_recipe(recipe, root / name)
    tokens = sum(training.tokens for training in plan.trainings)
    return {"text": text_of(recipe), "tokens": tokens, "flops": float(f"{plan.flops:.4g}")}


def test_every_preset_has_a_cost_and_nothing_else_has() -> None:
    assert sorted(json.loads(COSTS.read_text("utf-8"))) == preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_the_cost_of_a_preset_is_that_of_its_plan(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "stories260k" and not STORIES.is_dir():
        pytest.skip("there is no ../shared/data beside this checkout")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert preset_costs()[name] == cost_of(name, tmp_path)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        costs = {name: cost_of(name, Path(directory)) for name in preset_names()}
    COSTS.write_text(json.dumps(costs, indent=2) + "\n", "utf-8")
