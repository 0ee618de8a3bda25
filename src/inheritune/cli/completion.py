"""Complete presets, devices, recipes, runs and recipe keys in a shell, without heavy imports."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune.cli.next_step import DEFAULT_RUNS


def presets(incomplete: str) -> list[str]:
    """Names of presets."""
    from inheritune.recipe.presets import preset_names

    return _beginning(incomplete, preset_names())


def devices(incomplete: str) -> list[str]:
    """Names of devices that have a known speed and price."""
    from inheritune.system.devices import DEVICES

    return _beginning(incomplete, [*DEVICES, "cpu"])


def recipes(incomplete: str) -> list[str]:
    """YAML files, presets of which a letter is typed, and directories on the way."""
    files = [str(path) for path in _paths(incomplete) if path.suffix in {".yaml", ".yml"}]
    return [*files, *(presets(incomplete) if incomplete else [])] or _directories(incomplete)


def models(incomplete: str) -> list[str]:
    """Model directories, runs, and the model that comes with the package."""
    own = _beginning(incomplete, ["embedded:demo"])
    named = [str(path) for path in _paths(incomplete) if (path / "config.json").is_file()]
    return [*own, *runs(incomplete), *named] or _directories(incomplete)


def references(incomplete: str) -> list[str]:
    """What `plan` and `train` take: recipes, and models."""
    return sorted({*recipes(incomplete), *models(incomplete)})


def runs(incomplete: str) -> list[str]:
    """Directories of runs: those of the usual parent, or below what is typed."""
    known = DEFAULT_RUNS.glob("*/run.json")
    typed = (path for path in _paths(incomplete) if (path / "run.json").is_file())
    return sorted({*_beginning(incomplete, [str(p.parent) for p in known]), *map(str, typed)})


def keys(incomplete: str) -> list[str]:
    """Keys of a recipe, each with the = that its value follows."""
    return _beginning(incomplete, [f"{key}=" for key in recipe_keys()])


def train_keys(incomplete: str) -> list[str]:
    """Keys that a continued run may change."""
    return _beginning(incomplete, [key for key in recipe_keys() if key.startswith("train.")])


def recipe_keys() -> Iterator[str]:
    """Every key of a recipe that has a name of its own, from the schema in the package."""
    from inheritune.recipe.presets import schema_path

    schema = json.loads(schema_path().read_text(encoding="utf-8"))

    def walk(part: dict[str, Any], before: str) -> Iterator[str]:
        for name, value in part.get("properties", {}).items():
            inner = [*_sections(value, schema)]
            for section in inner:
                yield from walk(section, f"{before}{name}.")
            if not inner:
                yield before + name

    return walk(schema, "")


def _sections(value: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The mappings with keys of their own that a value may be."""
    for choice in value.get("anyOf", [value]):
        reference = choice.get("$ref", "").rpartition("/")[2]
        section = schema["$defs"][reference] if reference else choice
        if "properties" in section:
            yield section


def _paths(incomplete: str) -> list[Path]:
    """Files and directories that begin with what is typed, and those directly inside it."""
    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") or not incomplete else typed.parent
    start = "" if parent == typed else typed.name
    try:
        return sorted(path for path in parent.iterdir() if path.name.startswith(start or ""))
    except OSError:
        return []


def _directories(incomplete: str) -> list[str]:
    return [f"{p}/" for p in _paths(incomplete) if p.is_dir() and not p.name.startswith(".")]


def _beginning(incomplete: str, values: list[str]) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]
