"""Write the tensors of a GGUF file as safetensors, a few rows at a time."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.conversion.converted import Quantisation
from inheritune.conversion.gguf.container import PLAIN, Container
from inheritune.conversion.gguf.tensors import Piece, values_of
from inheritune.errors import MachineError, SourceError, escape
from inheritune.model_files.cast import cast
from inheritune.model_files.copy import write_all
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import (
    MAX_SHARD_BYTES,
    TargetTensor,
    file_header,
    split_into_shards,
)
from inheritune.system.progress import Listener, Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 2**22


def quantisation_of(container: Container) -> Quantisation | None:
    """Describe how a file is quantised; None where all values are stored as they are."""
    numbers = Counter(entry.type for entry in container.tensors.values())
    if not set(numbers) - set(PLAIN):
        return None
    sizes: Counter[str] = Counter()
    for entry in container.tensors.values():
        sizes[entry.type] += entry.size
    items = sum(entry.items for entry in container.tensors.values())
    ordered = {kind: numbers[kind] for kind, _ in sizes.most_common()}
    coarse = bool(set(numbers) - {*PLAIN, "Q8_0"})
    return Quantisation(ordered, 8 * sizes.total() / items, coarse)


def narrowest_dtype(container: Container, pieces: Sequence[Piece]) -> str:
    """Return the narrowest dtype of safetensors that holds every value of a file.

    The converter of llama.cpp stores norms and biases of a half-precision model as fp32. They go
    back to the dtype of the matrices where that loses nothing, that is, where storing them again
    would give the same bytes. Dequantised values need fp32.
    """
    matrices = {piece.entry.type for piece in pieces if len(piece.entry.shape) > 1}
    if matrices - set(PLAIN) or {"F16", "BF16"} <= matrices:
        return "F32"
    half = next(iter(matrices & {"F16", "BF16"}), "F32")
    wide = [piece for piece in pieces if piece.entry.type == "F32"]
    if half == "F32" or not all(_fits(container, piece, half) for piece in wide):
        return "F32"
    return half


def _fits(container: Container, piece: Piece, dtype: str) -> bool:
    import numpy as np

    for stored in values_of(container, piece):
        try:
            narrow = cast(_bytes(stored - np.float32(piece.shift)), "F32", dtype)
        except SourceError:  # too large
            return False
        again = np.frombuffer(cast(narrow, dtype, "F32"), "<f4").reshape(stored.shape)
        if not np.array_equal(again + np.float32(piece.shift), stored, equal_nan=True):
            return False
    return True


def write_weights(
    container: Container, pieces: Sequence[Piece], dtype: str, out: Path, on_progress: Listener
) -> tuple[list[str], list[str]]:
    """Write all tensors as ``model.safetensors``, or as several files of at most 5 GB.

    Each file is read back and compared with what was written.

    Args:
        dtype: Dtype of every tensor, in the format's notation.
        out: Directory to write to.

    Returns:
        The names of the files, and of the tensors that hold NaN or infinity.

    Raises:
        SourceError: A value is too large for the dtype.
        MachineError: A file is not what was written to it.
    """
    by_name = {piece.name: piece for piece in pieces}
    targets = [
        TargetTensor(p.name, Tensor(p.name, "F32", p.shape, container.path, 0, 0), dtype)
        for p in pieces
    ]
    total, done = sum(target.size for target in targets), 0
    not_finite: list[str] = []
    shards = split_into_shards(targets, MAX_SHARD_BYTES)
    for name, shard in shards.items():
        digest = _Digest()
        with (out / name).open("xb", buffering=0) as file:
            header = file_header(shard, {"format": "pt"})
            digest.write(file.fileno(), header)
            for target in shard:
                finite = True
                for values in _undone(container, by_name[target.name]):
                    finite = finite and _is_finite(values)
                    data = cast(_bytes(values), "F32", dtype, target.name)
                    digest.write(file.fileno(), data)
                    done += len(data)
                    on_progress(Progress("convert", done, total, "bytes"))
                if not finite:
                    not_finite.append(escape(target.name))
            os.fsync(file.fileno())
        digest.compare(out / name)
    return list(shards), not_finite


def _undone(container: Container, piece: Piece) -> Iterator["NDArray[np.float32]"]:
    import numpy as np

    for stored in values_of(container, piece):
        yield stored - np.float32(piece.shift) if piece.shift else stored


def _bytes(values: "NDArray[np.float32]") -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _is_finite(values: "NDArray[np.float32]") -> bool:
    import numpy as np

    return bool(np.isfinite(values).all())


class _Digest:
    """Remembers what was written to a file."""

    def __init__(self) -> None:
        import xxhash

        self._new = xxhash.xxh3_128
        self._written = self._new()

    def write(self, descriptor: int, data: bytes) -> None:
        self._written.update(data)
        write_all(descriptor, data)

    def compare(self, path: Path) -> None:
        read = self._new()
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                read.update(data)
        if read.digest() != self._written.digest():
            raise MachineError(
                f"{path.name} is not what was written to it.", "Check the disk and convert again."
            )
