"""Write the tensors of a checkpoint from any number of processes, and read them in any other.

Each process writes its rows of every tensor into a file of its own, whose metadata name the rows. A
tensor that is not sharded is written once, whole.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inheritune.errors import CheckpointError
from inheritune.training.fsdp import local, piece_of


def file_name(kind: str, rank: int, size: int) -> str:
    """Name a writer's file: ``model.safetensors``, or of several ``model-00001-of-00002...``."""
    return f"{kind}.safetensors" if size == 1 else f"{kind}-{rank:05d}-of-{size:05d}.safetensors"


def write_pieces(tensors: Mapping[str, Tensor], path: Path, rank: int) -> None:
    """Write this process's rows of some tensors; rank 0 alone writes those that are not sharded."""
    pieces = {name: piece_of(tensor) for name, tensor in tensors.items()}
    pieces = {n: piece for n, piece in pieces.items() if piece.rows is not None or rank == 0}
    rows = {n: [piece.first, piece.rows] for n, piece in pieces.items() if piece.rows is not None}
    save_file(
        {name: piece.tensor.detach().contiguous().cpu() for name, piece in pieces.items()},
        path,
        {"rows": json.dumps(rows)} if rows else None,
    )


class SavedTensors:
    """The tensors in a checkpoint's files of one kind, one of each writer, read by rows.

    Raises:
        CheckpointError: Rows of a tensor are missing, or there twice.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, list[tuple[int, int, Any]]] = {}
        self._rows: dict[str, int] = {}
        for path in sorted(paths):
            file = safe_open(path, "pt")
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                shape = file.get_slice(name).get_shape()
                first, total = rows.get(name, (0, shape[0] if shape else 1))
                stop = first + (shape[0] if shape else 1)
                self._places.setdefault(name, []).append((first, stop, file))
                self._rows[name] = total
        self._check_rows()

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in no particular order."""
        return list(self._places)

    def read_into(self, name: str, target: Tensor) -> None:
        """Overwrite a tensor that is whole, or this process's rows of one that is sharded.

        Raises:
            CheckpointError: The saved tensor has another shape.
        """
        piece, own_rows = piece_of(target), local(target)
        with torch.no_grad():
            if not own_rows.ndim:
                own_rows.copy_(self._places[name][0][2].get_tensor(name))
                return
            if self._rows[name] != (len(own_rows) if piece.rows is None else piece.rows):
                raise CheckpointError(f"{name} has another shape than in this model.")
            begin, end = piece.first, piece.first + len(own_rows)
            for first, stop, file in self._places[name]:
                low, high = max(first, begin), min(stop, end)
                if low < high:
                    rows = file.get_slice(name)[low - first : high - first]
                    if rows.shape[1:] != own_rows.shape[1:]:
                        raise CheckpointError(f"{name} has another shape than in this model.")
                    own_rows[low - begin : high - begin].copy_(rows)

    def _check_rows(self) -> None:
        for name, places in self._places.items():
            places.sort(key=lambda place: place[:2])  # by their rows
            end = 0
            for first, stop, _ in places:
                if first != end:
                    raise CheckpointError(
                        f"rows of {name} from {min(first, end)} on are missing or there twice."
                    )
                end = stop
            if end != self._rows[name]:
                raise CheckpointError(f"rows of {name} from {end} on are missing.")
