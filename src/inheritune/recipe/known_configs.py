"""Look up the shapes of published models, to plan with before they are downloaded.

The values are those of the models' public config.json files as of November 2026, and give the
published numbers of parameters. Training and inheriting always read the model itself instead.
"""

import json
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

_SAME_SHAPE = ("-Instruct", "-it", "-deduped")  # what is tuned or cleaned has the shape of its base


def known_config(model: str) -> dict[str, Any] | None:
    """Return the fields of config.json that decide sizes, by the last part of an id or path."""
    name = PurePosixPath(model.replace("\\", "/")).name
    text = (files("inheritune.recipe") / "known_configs.json").read_text("utf-8")
    configs: dict[str, dict[str, Any]] = json.loads(text)
    for end in ("", *_SAME_SHAPE):
        if name.endswith(end) and (config := configs.get(name.removesuffix(end))) is not None:
            return config
    return None
