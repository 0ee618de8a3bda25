"""mergekit in an environment of its own."""

import json
from pathlib import Path

from measuring import environment

MERGEKIT = "0.1.5"
_SAME = ("torch", "transformers")


def install(venv: Path) -> str | None:
    """Make the environment unless it is there; None, or why there is no mergekit."""
    return environment.install(venv, "mergekit", MERGEKIT, _SAME)


def versions(venv: Path) -> str:
    """What stands in the environment, for the table."""
    return environment.versions(venv, ("mergekit", *_SAME))


def program(venv: Path) -> Path:
    return venv / "bin" / "mergekit-yaml"


def passthrough(
    venv: Path, reference: Path, layers: int, out: Path, dtype: str
) -> list[str | Path]:
    """The command that keeps the first layers; its recipe is written beside ``out``."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(
        "merge_method: passthrough\n"
        f"dtype: {dtype}\n"
        "slices:\n"
        "  - sources:\n"
        f"      - model: {json.dumps(str(reference))}\n"
        f"        layer_range: [0, {layers}]\n",
        "utf-8",
    )
    # The generated references have no tokenizer.
    return [program(venv), recipe, out, "--no-copy-tokenizer"]
