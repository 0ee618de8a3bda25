"""Give the shapes of published models that recipes name, to plan with before they are downloaded.

The values are those of the models' public config.json files. Training and inheriting always read
the model itself instead.
"""

import json
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any


def known_models() -> list[str]:
    """List the models whose shape is known, without their owners."""
    return sorted(_configs())


def known_config(model: str) -> dict[str, Any] | None:
    """Look up the fields of config.json that decide sizes, by the last part of an id or path."""
    return _configs().get(PurePosixPath(model.replace("\\", "/")).name)


def _configs() -> dict[str, dict[str, Any]]:
    text = (files("inheritune.recipe") / "known_configs.json").read_text("utf-8")
    configs: dict[str, dict[str, Any]] = json.loads(text)
    return configs
