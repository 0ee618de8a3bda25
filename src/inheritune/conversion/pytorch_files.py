"""Find the PyTorch weights of a model directory, without unpickling any."""

from collections.abc import Collection
from pathlib import Path

from inheritune.errors import SourceError, escape, reason_of
from inheritune.model_files.addresses import missing_directory
from inheritune.model_files.foreign_layouts import (
    PICKLES,
    find_layout,
    is_shard,
    names_in,
    pickled_weights,
    refusal,
    refuse_incomplete,
)
from inheritune.model_files.refusals import refused_file
from inheritune.model_files.safe_path import read_weight_index, safe_file
from inheritune.model_files.safetensors import refuse_foreign

_SINGLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
_AGAIN = "Download it again."


def find_pytorch_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the pickled weights of a model directory, and check their first bytes.

    They are ``pytorch_model.bin``, or the files that ``pytorch_model.bin.index.json`` names, or the
    only other file with one of the `PICKLES` endings, or all that are numbered.

    Returns:
        The files, which are plain files of the directory; and the file name of each tensor by the
        index, empty without an index.

    Raises:
        SourceError: There are none, the index leads out of the directory, or a file is not one that
            torch wrote.
    """
    if directory.is_file():
        raise refused_file(directory)
    if not directory.is_dir():
        error = missing_directory(str(directory))
        get = "Only local directories are converted: get it with `hf download ID --local-dir DIR`."
        raise SourceError(error.message, f"{error.hint} {get}".strip())
    names = names_in(directory)
    if {"model.safetensors", "model.safetensors.index.json"} & names:
        raise SourceError(
            f"{directory} has its weights in safetensors already.", "Use it as it is."
        )
    if (found := find_layout(names)) and not found[0].converts:
        raise refusal(*found, str(directory))
    places: dict[str, str] = {}
    if _SINGLE in names:
        file_names = [_SINGLE]
    elif _INDEX in names:
        places = read_weight_index(safe_file(directory, _INDEX), PICKLES)[0]
        file_names = sorted(set(places.values()))
    else:
        file_names = _only_files(directory, names)
    # All names and links first: nothing is opened when one of them leads astray.
    files = [safe_file(directory, name) for name in file_names]
    for file in files:
        _refuse_foreign(file)
    return files, places


def _only_files(directory: Path, names: Collection[str]) -> list[str]:
    candidates = pickled_weights(names)
    if not candidates:
        raise SourceError(
            f"{directory} holds no PyTorch weights.", f"Name a model directory with {_SINGLE}."
        )
    refuse_incomplete(candidates, directory)
    if len(candidates) > 1 and not all(map(is_shard, candidates)):
        shown = ", ".join(escape(name, 40) for name in candidates[:3])
        raise SourceError(
            f"{directory} holds {len(candidates)} files that may be the weights: {shown}.",
            f"Put the right ones alone into a directory, with config.json beside them; or call a "
            f"single one {_SINGLE}.",
        )
    return candidates


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {reason_of(error)}.") from error
    refuse_foreign(path, start, "a PyTorch checkpoint")
    if start.startswith(b'{"', 8):
        raise SourceError(
            f"{path} is a safetensors file, not a PyTorch checkpoint.",
            "Call it model.safetensors; there is nothing to convert.",
        )
    if not start:
        raise SourceError(f"{path} is empty.", _AGAIN)
    if not any(start):
        raise SourceError(f"{path} begins with zeros: its download was cut off.", _AGAIN)
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise SourceError(f"{path} is no PyTorch checkpoint.", _AGAIN)
