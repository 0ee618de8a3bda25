"""Write the tensors of a GGUF file as safetensors, a few rows at a time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.conversion.converted import Quantisation
from inheritune.conversion.gguf.container import PLAIN, Container
from inheritune.conversion.gguf.tensors import Piece, values_of
from inheritune.conversion.write_tensors import write_tensors
from inheritune.errors import SourceError
from inheritune.model_files.cast import cast
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import TargetTensor
from inheritune.system.progress import Listener

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    """Write all tensors of a file in one dtype; see `write_tensors`.

    Raises:
        SourceError: A value is too large for the dtype.
        MachineError: A file is not what was written to it.
    """
    by_name = {piece.name: piece for piece in pieces}
    targets = [
        TargetTensor(p.name, Tensor(p.name, "F32", p.shape, container.path, 0, 0), dtype)
        for p in pieces
    ]

    def data_of(target: TargetTensor) -> Iterator[bytes]:
        for values in _undone(container, by_name[target.name]):
            yield cast(_bytes(values), "F32", dtype, target.name)

    return write_tensors(targets, data_of, out, on_progress)


def _undone(container: Container, piece: Piece) -> Iterator["NDArray[np.float32]"]:
    import numpy as np

    for stored in values_of(container, piece):
        yield stored - np.float32(piece.shift) if piece.shift else stored


def _bytes(values: "NDArray[np.float32]") -> bytes:
    return values.astype("<f4", copy=False).tobytes()
