"""Find the recipes that come with the package."""

import difflib
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError, escape
from inheritune.system.strict_json import OWN_FILE, read_json_object


def preset_names() -> list[str]:
    """List the names of all presets, sorted."""
    return sorted(path.stem for path in _directory().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Return the recipe file of a preset; the error for an unknown name suggests another one."""
    names = preset_names()
    if name not in names:
        close = nearest_preset(name)
        hint = f"Did you mean {close}?" if close else f"Choose one of: {', '.join(names)}."
        raise RecipeError(f"unknown preset {escape(repr(name))}.", hint)
    return _directory() / f"{name}.yaml"


def nearest_preset(name: str) -> str | None:
    """Return the preset whose name is like a text; None: none is."""
    return next(iter(difflib.get_close_matches(name[:100].lower(), preset_names(), n=1)), None)


def commented_recipe(name: str) -> str:
    """Return the text of a preset with its comments, to start a recipe from.

    Its first line names the schema by its place on this machine, so that an editor finds it from
    every directory.
    """
    text = preset_path(name).read_text(encoding="utf-8")
    return text.replace("$schema=recipe.schema.json", f"$schema={schema_uri()}", 1)


def schema_uri() -> str:
    """Return the address of the JSON Schema that comes with the package."""
    return schema_path().resolve().as_uri()


def schema_path() -> Path:
    """Return the file of the JSON Schema that comes with the package."""
    return _directory() / "recipe.schema.json"


def preset_costs() -> dict[str, dict[str, Any]]:
    """Return ``text``, ``tokens`` and ``flops`` of each preset, as `plan` computes them.

    Tokens and FLOPs are those of all trainings that may become necessary.
    """
    costs = read_json_object(_directory() / "costs.json", OWN_FILE)
    return {name: costs[name] for name in preset_names()}


def _directory() -> Path:
    # A wheel carries the recipes inside the package; a checkout has them at its root.
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"
