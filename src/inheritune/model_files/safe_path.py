"""Check file names and links of a model directory before anything behind them is opened."""

import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.system.strict_json import MODEL_FILE, read_json_object

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def safe_file(directory: Path, name: str) -> Path:
    """Return the path of a file in a model directory after checking that no link leads out of it.

    A snapshot in the Hugging Face cache may link into that cache's ``blobs/``.

    Raises:
        SourceError: It does not exist, is not a regular file, or is a link that leads elsewhere.
    """
    path = directory / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise SourceError(
            f"{path} is missing, or a link to nothing.", "Download the model again."
        ) from error
    if not any(real.is_relative_to(root) for root in _roots(directory.resolve())):
        raise SourceError(
            f"{path} is a link that leads out of its directory.",
            "Replace it by the file itself, if you trust it.",
        )
    if not real.is_file():
        raise SourceError(f"{path} is not a regular file.", "Download the model again.")
    return path


def _roots(directory: Path) -> list[Path]:
    if directory.parent.name != "snapshots":
        return [directory]
    repository = directory.parents[1]
    # The second one holds what several repositories share (huggingface_hub >= 2).
    return [directory, repository / "blobs", repository.parent / "blobs"]


def read_weight_index(
    path: Path, endings: tuple[str, ...] = (".safetensors",)
) -> tuple[dict[str, str], dict[str, Any]]:
    """Read a weight index: the file name of each tensor, safe to open, and the metadata.

    Raises:
        SourceError: The index is broken, or names anything but plain files beside it.
    """
    index = read_json_object(path, MODEL_FILE, "the weight index")
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{path} has no weight_map.", "Download it again.")
    for tensor, file in weight_map.items():
        if isinstance(file, str):  # "./" is what some tools write before each name
            weight_map[tensor] = file = file.removeprefix("./")
        if not isinstance(file, str) or not file.endswith(endings) or not is_plain_name(file):
            raise SourceError(
                f"{path} names {escape(repr(file))} as a weight file; only plain names that end in "
                f"{', '.join(endings)} are opened.",
                "Do not use this copy of the model.",
            )
    files = {tensor: sys.intern(file) for tensor, file in weight_map.items()}
    return files, metadata if isinstance(metadata, dict) else {}


def is_plain_name(name: str) -> bool:
    """Tell whether a text names a file of a directory, and no other path, on every system."""
    is_name = PurePosixPath(name).name == PureWindowsPath(name).name == name
    return is_name and name.isprintable() and not any(mark in name for mark in '/\\:"')
