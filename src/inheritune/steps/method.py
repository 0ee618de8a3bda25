"""Tell which preset of `run --method` a recipe follows, whoever wrote it."""

from inheritune.recipe.filling import METHODS, Method, distill_section
from inheritune.recipe.schema import Recipe
from inheritune.recipe.variants import Distill
from inheritune.surgery.selection import way_of

OWN = "own"  # no preset


def method_of(recipe: Recipe) -> str:
    """Name the preset whose layers, repair and loss a target has; `OWN` if it is none of them."""
    train, target = recipe.train, recipe.variants[recipe.target_name]
    if train.only is not None or target.only is not None:
        return OWN
    made = way_of(recipe.inherit.select), recipe.inherit.repair, target.distill
    for name, forms in METHODS.items():
        if made in [(form.select, form.repair, _distill(form, train.schedule)) for form in forms]:
            return name
    return OWN


def _distill(form: Method, schedule: str) -> Distill | None:
    if form.distill is None:
        return None
    return Distill.model_validate(distill_section(form.distill, {"schedule": schedule}))
