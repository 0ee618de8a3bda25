"""Compute what a LoRA adapter makes of a weight: W + s B A, some rows at a time, in fp32."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inheritune.conversion.stored_values import as_float32
from inheritune.model_files.cast import cast
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import read_chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Factors:
    """What is added to a weight: s B A."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float
    is_transposed: bool  # whether the weight is (in, out)

    def matrices(self) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
        """Read the two matrices whose product has the weight's shape."""
        a, b = (
            as_float32(b"".join(read_chunks(part)), part.dtype).reshape(part.shape)
            for part in (self.a, self.b)
        )
        return (a.T, b.T) if self.is_transposed else (b, a)


@dataclass(frozen=True)
class Change:
    """What an adapter makes of a tensor of the base model."""

    whole: Tensor  # the base's, or one that was trained in its place
    factors: Factors | None = None


def values_of(change: Change, dtype: str) -> Iterator[bytes]:
    """Yield the bytes of a changed tensor in a dtype, a few million values at a time."""
    import numpy as np

    whole, factors = change.whole, change.factors
    if factors is None:
        yield from (cast(d, whole.dtype, dtype, whole.name) for d in read_chunks(whole))
        return
    left, right = factors.matrices()
    width = whole.shape[1]
    at, rest = 0, np.empty(0, "<f4")
    for data in read_chunks(whole):
        # Chunks are whole values, not whole rows: what is left of a row waits for the next one.
        rest = np.concatenate([rest, as_float32(data, whole.dtype)])
        rows = len(rest) // width
        weight, rest = rest[: rows * width].reshape(rows, width), rest[rows * width :]
        added = (left[at : at + rows] @ right) * np.float32(factors.scale)
        at += rows
        yield cast((weight + added).astype("<f4").tobytes(), "F32", dtype)


def are_alike(one: Change, other: Change) -> bool:
    """Tell whether two changes make equal tensors, by what they are computed from."""
    if not are_equal(one.whole, other.whole):
        return False
    if one.factors is None or other.factors is None:
        return one.factors is other.factors
    pairs = zip(one.factors.matrices(), other.factors.matrices(), strict=True)
    return one.factors.scale == other.factors.scale and all(
        a.shape == b.shape and bool((a == b).all()) for a, b in pairs
    )


def are_equal(one: Tensor, other: Tensor) -> bool:
    """Compare two tensors on disk bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(read_chunks(one), read_chunks(other), strict=True))
