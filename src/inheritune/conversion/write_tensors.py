"""Write weights that are computed a piece at a time, and read back what was written."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

from inheritune.errors import MachineError, escape
from inheritune.model_files.copy import write_all
from inheritune.model_files.safetensors import item_bits
from inheritune.model_files.scan import is_finite
from inheritune.model_files.write import (
    MAX_SHARD_BYTES,
    TargetTensor,
    file_header,
    split_into_shards,
)
from inheritune.system.progress import Listener, Progress

_CHUNK = 2**22


def write_tensors(
    targets: Sequence[TargetTensor],
    data_of: Callable[[TargetTensor], Iterator[bytes]],
    out: Path,
    on_progress: Listener,
) -> tuple[list[str], list[str]]:
    """Write tensors as ``model.safetensors``, or as several files of at most 5 GB.

    Args:
        targets: Those of one source file follow each other.
        data_of: Gives a tensor's bytes in pieces of whole values, in the dtype of the new file.
        out: Directory to write to.

    Returns:
        The names of the files, and of the tensors that hold NaN or infinity.

    Raises:
        MachineError: A file is not what was written to it.
    """
    total, done = sum(target.size for target in targets), 0
    not_finite: list[str] = []
    shards = split_into_shards(targets, MAX_SHARD_BYTES)
    for name, shard in shards.items():
        # Widest values first: then each tensor begins at a multiple of its own item size.
        ordered = sorted(shard, key=lambda target: -item_bits(target.dtype))
        digest = _Digest()
        with (out / name).open("xb", buffering=0) as file:
            digest.write(file.fileno(), file_header(ordered, {"format": "pt"}))
            for target in ordered:
                finite = True
                for data in data_of(target):
                    finite = finite and is_finite(data, target.dtype)
                    digest.write(file.fileno(), data)
                    done += len(data)
                    on_progress(Progress("convert", done, total, "bytes"))
                if not finite:
                    not_finite.append(escape(target.name))
            os.fsync(file.fileno())
        digest.compare(out / name)
    return list(shards), not_finite


class _Digest:
    """Remembers what was written to a file."""

    def __init__(self) -> None:
        self._written = xxhash.xxh3_128()

    def write(self, descriptor: int, data: bytes) -> None:
        self._written.update(data)
        write_all(descriptor, data)

    def compare(self, path: Path) -> None:
        read = xxhash.xxh3_128()
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                read.update(data)
        if read.digest() != self._written.digest():
            raise MachineError(
                f"{path.name} is not what was written to it.", "Check the disk and convert again."
            )
