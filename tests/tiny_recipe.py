"""One recipe for the tests of whole runs: trainings of a second or so on the tiny models."""

from pathlib import Path
from typing import Any

from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe

__all__ = ["as_file", "fields_of", "recipe_of"]

_TRAIN = {
    "tokens": 1280,
    "seq_len": 16,
    "batch_tokens": 128,
    "micro_batch": 8,
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "precision": "fp32",
    "eval_every": 640,
}


def fields_of(model: Path | str, text: Path | str, **sections: Any) -> dict[str, Any]:
    """A recipe's mapping: two rounds of ten steps; sections are merged in, other values replace."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "reference": {"model": str(model)},
        "data": {"source": str(text), "val_fraction": 0.2},
        "train": _TRAIN,
        "grow": {"add": 1, "max_rounds": 2},
        # A second each of every run; tests of them ask for them.
        "analyze": None,
        "evaluate": {"gains": False},
    }
    for name, section in sections.items():
        merges = isinstance(section, dict) and isinstance(fields.get(name), dict)
        fields[name] = fields[name] | section if merges else section
    return fields


def recipe_of(model: Path | str, text: Path | str, **sections: Any) -> Recipe:
    """The recipe of `fields_of`."""
    return Recipe.model_validate(fields_of(model, text, **sections))


def as_file(recipe: Recipe) -> RecipeFile:
    """A recipe as if it had been read from a file."""
    return RecipeFile(None, "# made by a test\n", recipe, {})
