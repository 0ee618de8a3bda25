"""Tell which preset of `run --method` a recipe follows, whoever wrote it."""

from inheritune.recipe.filling import METHODS, Method
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Distill
from inheritune.surgery.selection import way_of

OWN = "own"  # no preset


def method_of(recipe: Recipe) -> str:
    """Name the preset whose layers, repair and loss a target has; `OWN` if it is none of them."""
    target = recipe.variants[recipe.target_name]
    if recipe.train.only is not None or target.only is not None:
        return OWN
    made = way_of(recipe.inherit.select), recipe.inherit.repair, target.distill
    for name, forms in METHODS.items():
        if made in [(form.select, form.repair, _distill(form)) for form in forms]:
            return name
    return OWN


def _distill(form: Method) -> Distill | None:
    return None if form.distill is None else Distill.model_validate(dict(form.distill))
