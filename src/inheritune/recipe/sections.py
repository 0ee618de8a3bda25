"""Make a recipe from a path, a preset's name, a `Recipe` or keyword arguments."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError
from inheritune.recipe.load import RecipeFile, made_recipe, override, read_recipe
from inheritune.recipe.presets import preset_names, preset_path
from inheritune.recipe.schema import Recipe
from inheritune.recipe.values import RecipeSection
from inheritune.recipe.yaml_tree import Tree


def recipe_path(subject: str) -> Path | None:
    """Return the recipe that `run` is given: a file or a preset; None if it is given a model.

    A recipe is a file, whether or not it is there if its name ends in .yaml, or the name of a
    preset. Anything else is a model: a directory, a Hub id, ``embedded:demo``.

    Raises:
        RecipeError: The name is that of a preset and of a model directory.
    """
    path = Path(subject)
    try:
        is_directory, is_model = path.is_dir(), (path / "config.json").is_file()
        if path.is_file() or (path.suffix in (".yaml", ".yml") and not is_directory):
            return path
    except OSError:  # too long for a file; opening it as a model says so
        return None
    if subject not in preset_names():
        return None
    if is_model:
        raise RecipeError(
            f"{subject} is both a preset and a model directory.",
            f"Write ./{subject} for the directory, or {subject}.yaml after: "
            f"inheritune init --preset {subject} > {subject}.yaml",
        )
    return preset_path(subject)


def is_recipe(value: object) -> bool:
    """Tell whether a value is a recipe, or the path of one, and not a model."""
    if isinstance(value, str | os.PathLike):
        return Path(value).suffix in (".yaml", ".yml") and not Path(value).is_dir()
    return isinstance(value, Recipe | RecipeFile)


def recipe_with(
    recipe: "str | os.PathLike[str] | Recipe | RecipeFile | None",
    sections: Mapping[str, Any],
    sets: Sequence[str] = (),
) -> RecipeFile:
    """Read a recipe, and replace some of its keys.

    Args:
        recipe: Path, name of a preset, or a `Recipe`; None: the sections alone are the recipe.
        sections: New values by section; a mapping replaces only the keys that it has.
        sets: Overrides such as ``"train.tokens=1M"``, before those of ``sections``.

    Raises:
        RecipeError: The recipe is missing or wrong; one to three lines say where.
    """
    if isinstance(recipe, str | os.PathLike):
        path = Path(recipe)
        if isinstance(recipe, str) and not path.suffix and not path.exists():
            path = preset_path(recipe)
        return read_recipe(path, [*sets, *overrides(sections)])
    if isinstance(recipe, RecipeFile):
        if not sections and not sets:
            return recipe
        recipe = recipe.recipe
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"expected a recipe, got {type(recipe).__name__}")
    fields: dict[str, Any] = {} if recipe is None else recipe.resolved()
    tree = Tree("the recipe", fields)
    for text in sets:
        override(tree, text)
    # As in a file: paths are texts, tuples are lists.
    values: dict[str, Any] = json.loads(json.dumps(dict(sections), default=_plain))
    for name, value in values.items():
        merges = isinstance(value, Mapping) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **value} if merges else value
    return made_recipe(tree)


def overrides(sections: Mapping[str, Any]) -> list[str]:
    """Write sections as ``--set`` texts, KEY=VALUE with the value in JSON, which is YAML."""
    texts = []
    for name, section in sections.items():
        keys = section.items() if isinstance(section, Mapping) else [("", section)]
        for key, value in keys:
            quoted = f'"{key}"' if "." in str(key) else key
            texts.append(f"{name}{'.' if key else ''}{quoted}={yaml_value(value)}")
    return texts


def yaml_value(value: Any) -> str:
    """Write a value in one line of YAML: as JSON, which is YAML."""
    # JSON escapes an emoji as two surrogates, which YAML does not join: escape as YAML does.
    text = json.dumps(value, default=_plain, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _plain(value: Any) -> Any:
    if isinstance(value, RecipeSection):
        return value.model_dump(mode="json")
    return dict(value) if isinstance(value, Mapping) else os.fspath(value)
