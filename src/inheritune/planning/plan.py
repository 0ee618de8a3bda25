"""Plan a cut of a model, or a whole recipe, without running anything."""

from pathlib import Path

from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.planning.candidates import Budget, Candidates, CutPlan, list_candidates, plan_cut
from inheritune.planning.recipe_plan import RecipePlan, plan_recipe
from inheritune.recipe.load import read_recipe
from inheritune.recipe.schema import Recipe
from inheritune.system.devices import Speed

__all__ = ["is_recipe_path", "plan"]


def plan(
    source: str | Path | ModelDirectory | Recipe,
    layers: str | int | None = None,
    *,
    revision: str | None = None,
    seq_len: int | None = None,
    tokens: int | None = None,
    speed: Speed | None = None,
    runs: Path = Path("runs"),
) -> Candidates | CutPlan | RecipePlan:
    """Estimate size, time and cost of a cut or of a recipe, without running it.

    Reads headers and configs only, and loads neither torch nor transformers.

    Args:
        source: A Hub id, model directory or ``"embedded:demo"``; or a recipe or the path of one.
        layers: A selection of layers to plan one cut in detail, such as 12 or ``"first+last:6+2"``;
            None: all numbers of layers worth considering.
        revision: Branch, tag or commit of a Hub id.
        seq_len: Tokens per sequence; None: the model's number of positions, at most 2048.
        tokens: Training tokens to estimate; for a model only.
        speed: Devices to train on; None: estimate FLOPs only.
        runs: Parent directory of runs; for a recipe only.

    Returns:
        `Candidates` for a model, `CutPlan` for a model with `layers`, `RecipePlan` for a recipe.
    """
    if isinstance(source, str | Path) and is_recipe_path(source):
        source = read_recipe(Path(source)).recipe
    if isinstance(source, Recipe):
        return plan_recipe(source, runs / source.name, speed)
    if not isinstance(source, ModelDirectory):
        source = open_model(str(source), revision, whole=False)
    budget = Budget(seq_len, tokens, speed)
    if layers is None:
        return list_candidates(source, budget)
    return plan_cut(source, str(layers), budget)


def is_recipe_path(source: str | Path) -> bool:
    """Tell a recipe from a model: it ends in .yaml or .yml and is not a directory."""
    return str(source).endswith((".yaml", ".yml")) and not Path(source).is_dir()
