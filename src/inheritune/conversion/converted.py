"""Say what a conversion gave, and finish a converted model directory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError, SourceError
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import Tensor
from inheritune.surgery.class_check.ask_class import check_whole
from inheritune.surgery.write import to_json
from inheritune.system.files import refuse_used_directory, sha256, write_bytes

RECORD_FORMAT = 1
"""Format of convert.json."""


@dataclass(frozen=True)
class Quantisation:
    """How the matrices of a GGUF file are stored."""

    tensors: Mapping[str, int]  # number of tensors by ggml's type, the type with most bytes first
    bits_per_weight: float  # of all tensors together
    is_coarse: bool  # whether a tensor has fewer bits than Q8_0's 8.5

    def __str__(self) -> str:
        kinds = ", ".join(kind for kind in self.tensors if kind not in ("F32", "F16", "BF16"))
        return f"{kinds}; {self.bits_per_weight:.2f} bits per weight"

    def as_json(self) -> dict[str, Any]:
        """Return what the record and the command print."""
        return {
            "summary": str(self),
            "tensors": dict(self.tensors),
            "bits_per_weight": round(self.bits_per_weight, 4),
        }


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        model: The new model directory.
        check: ``"complete: "`` and the model's class, or ``"not checked: "`` and why.
        tokenizer: ``"equal: "``, ``"differs: "`` or ``"not checked: "``, then how its ids compare
            with those of its sentencepiece model; empty without such a model.
        dropped: Names in the files that are not in the model, with the reason.
        confinement: Each wall around the process that unpickled, and whether the system granted it;
            empty for a GGUF file, which runs no code.
        quantisation: How the weights of a GGUF file were quantised; None if they were not.
        base: Model that an adapter was merged into, with its commit; empty for all else.
    """

    model: ModelDirectory
    check: str
    tokenizer: str
    dropped: Mapping[str, str]
    warnings: list[str]
    confinement: Mapping[str, bool]
    quantisation: Quantisation | None = None
    base: str = ""


def refuse_place(out: Path, source: Path) -> None:
    """Refuse an output directory that is in use, or lies in the source."""
    if Path(os.path.realpath(out)).is_relative_to(source.resolve()):
        raise RecipeError(f"{out} lies in {source}.", "Name another directory.")
    refuse_used_directory(out)


def describe_file(path: Path) -> dict[str, Any]:
    """Return what the record says of a file that was converted."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}


def write_index(shards: Mapping[str, Sequence[Tensor]], directory: Path) -> None:
    """Write the index of several weight files; a single one needs none."""
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.size for tensors in shards.values() for t in tensors)},
            "weight_map": {t.name: name for name, tensors in shards.items() for t in tensors},
        }
        write_bytes(directory / "model.safetensors.index.json", to_json(index))


def check_converted(model: ModelDirectory) -> str:
    """Have the model's class confirm that every weight is there; return its summary."""
    try:
        return check_whole(model).summary
    except SourceError as error:
        message = f"the checkpoint is not a whole model: {error.message}"
        raise SourceError(message, error.hint) from error
