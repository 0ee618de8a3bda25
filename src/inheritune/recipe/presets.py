"""The recipes that come with the package, by name."""

import difflib
from pathlib import Path

from inheritune.errors import RecipeError, escape

__all__ = ["commented_recipe", "preset_names", "preset_path"]


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in _directory().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The recipe file of a preset.

    Args:
        name: One of ``preset_names()``.

    Raises:
        RecipeError: There is no such preset.
    """
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name[:100].lower(), names, n=1)
        way_out = f"Did you mean {close[0]}?" if close else f"Choose one of: {', '.join(names)}."
        raise RecipeError(f"there is no preset {escape(name)}.", way_out)
    return _directory() / f"{name}.yaml"


def commented_recipe(name: str) -> str:
    """The text of a preset, with its comments: where a recipe of one's own starts.

    Args:
        name: One of ``preset_names()``.

    Raises:
        RecipeError: There is no such preset.
    """
    return preset_path(name).read_text(encoding="utf-8")


def _directory() -> Path:
    # A wheel carries the recipes inside the package; a checkout has them at its root.
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"
