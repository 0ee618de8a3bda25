"""Read a recipe from a YAML file and ``--set`` texts, check it, and record each value's origin."""

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inheritune.errors import RecipeError, escape
from inheritune.recipe.messages import explain
from inheritune.recipe.schema import Recipe
from inheritune.recipe.values import safe_name
from inheritune.recipe.yaml_tree import KeyPath, Location, Tree, dotted, kind_of, read_tree
from inheritune.system.reading import read_regular_file

_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class RecipeFile:
    """A checked recipe, together with the text it was read from."""

    path: Path | None  # the file; None for a recipe that was not read from one
    text: str  # the file's text without a byte order mark; empty if there is no file
    recipe: Recipe
    # "file", "--set", "--scale" or "default" of each value, by dotted key such as "train.tokens".
    origins: dict[str, str]
    scaled: str = ""  # a sentence on how `--scale` shrank the recipe; otherwise empty


def read_recipe(path: Path, sets: Sequence[str] = ()) -> RecipeFile:
    """Read, override and check a recipe.

    Args:
        path: A YAML 1.2 file of at most 1 MB.
        sets: Overrides such as ``"train.learning_rate=1e-4"``; a later one for the same key wins.

    Raises:
        RecipeError: One to three lines that name file, line, key, value and what is allowed.
    """
    return parse_recipe(_read_text(path, escape(path, 120)), path, sets)


def parse_recipe(text: str, path: Path, sets: Sequence[str] = ()) -> RecipeFile:
    """Read a recipe from the text of its file; see `read_recipe`."""
    label = escape(path, 120)
    tree = read_tree(text, label)
    if tree.value is None:
        raise RecipeError(
            f"{label}: the recipe is empty.",
            "Start from a preset: inheritune init --preset demo > recipe.yaml",
        )
    if not isinstance(tree.value, dict):
        kind = kind_of(tree.value)
        raise RecipeError(
            f"{label}: expected a mapping at the top level, found {kind}.",
            "Write keys such as name: and train:.",
        )
    for text_of_set in sets:
        override(tree, text_of_set)
    tree.value.setdefault("name", _name_of_file(path))
    return made_recipe(tree, path, text)


def _name_of_file(path: Path) -> str:
    # The copy that a run keeps of its recipe belongs to that run.
    home = path.absolute().parent
    is_of_run = path.name == "recipe.yaml" and (home / "run.json").is_file()
    return safe_name(home.name if is_of_run else path.stem)


def read_sets(sets: Sequence[str]) -> Tree:
    """Read overrides, KEY=VALUE, into a tree of recipe sections, without a file."""
    tree = Tree("the command line", {})
    for text in sets:
        override(tree, text)
    return tree


def made_recipe(tree: Tree, path: Path | None = None, text: str = "") -> RecipeFile:
    """Check the values of a recipe, and the file and text they were read from, if any."""
    try:
        recipe = Recipe.model_validate(tree.value)
    except ValidationError as error:
        raise explain(error, tree) from None
    origins = {
        ".".join(map(str, key)): tree.places[key].origin if key in tree.places else "default"
        for key, _ in leaves(recipe.resolved())
    }
    return RecipeFile(path, text, recipe, origins)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


def _read_text(path: Path, label: str) -> str:
    try:
        data = read_regular_file(path, _MAX_BYTES)
    except OSError as error:
        hint = "Name a readable YAML file."
        if error.errno == errno.ENOENT:
            hint = "Check the path, or write one: inheritune init --preset demo > recipe.yaml"
        raise RecipeError(f"cannot read the recipe {label}: {error.strerror}.", hint) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{label}, line {line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}.",
            "Save the file as UTF-8.",
        ) from error


def override(tree: Tree, text: str) -> None:
    """Put one override, KEY=VALUE, into a tree of recipe sections."""
    label = f"--set {escape(text)}"
    key, equals, raw = text.partition("=")
    parts = re.findall(r'"[^"]*"|[^".]+', key)  # a name with a dot is quoted: variants."v1.5"
    path = tuple(part.strip().strip('"') for part in parts)
    if not equals or not key.strip() or not all(path) or ".".join(parts) != key:
        raise RecipeError(
            f"{label}: not of the form KEY=VALUE.",
            "Write it like --set train.learning_rate=1e-4",
        )
    override = read_tree(raw, label, "--set", path)
    if path not in override.places or (not override.places[path].raw and override.value is None):
        raise RecipeError(f"{label}: no value after '='.", "Write null for none, '' for no text.")
    _section(tree, path[:-1], label)[path[-1]] = override.value
    for replaced in [place for place in tree.places if place[: len(path)] == path]:
        del tree.places[replaced]
    tree.places.update(override.places)


def _section(tree: Tree, path: tuple[str, ...], label: str) -> dict[str, Any]:
    """Return the mapping at a path, and create it if it is missing."""
    values: dict[str, Any] = tree.value
    for end, part in enumerate(path, 1):
        if values.get(part) is None:
            # Overriding one variant must keep the default ones beside it.
            default = Recipe.model_fields["variants"].default
            is_variants = path[:end] == ("variants",)
            values[part] = {n: v.model_dump() for n, v in default.items()} if is_variants else {}
            tree.places[path[:end]] = Location("--set", label, 0)
        values = values[part]
        if not isinstance(values, dict):
            name = dotted(path[:end])
            raise RecipeError(
                f"{label}: {name} is {kind_of(values)} and has no keys.", f"Set {name} as a whole."
            )
    return values


def leaves(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values inside nested mappings with their paths; a list or {} is one value."""
    if not isinstance(values, dict) or not values:
        yield path, values
        return
    for key, part in values.items():
        yield from leaves(part, (*path, key))
