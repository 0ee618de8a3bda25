"""Read stored tensors as fp32 values, for formulas that compute weights from them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.cast import FLOATING, cast
from inheritune.model_files.safetensors import Tensor, item_bits
from inheritune.model_files.write import read_chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 2**21
"""Values computed at a time."""


@dataclass(frozen=True)
class Weight:
    """A weight that is computed from stored tensors."""

    name: str
    shape: tuple[int, ...]
    stored: Tensor  # the largest of the tensors that it is computed from
    values: Callable[[], Iterator["NDArray[np.float32]"]]  # in the order of their bytes
    used: frozenset[str]  # names of all stored tensors that it replaces


def part_of(tensors: Mapping[str, Tensor], name: str, of: Tensor) -> Tensor:
    """Return the tensor of this name, without which another one means nothing."""
    if name not in tensors:
        raise broken(of, f"is there, but not {escape(name)}")
    return tensors[name]


def broken(tensor: Tensor, what: str) -> SourceError:
    """Word that a weight cannot be computed; ``what`` is a predicate of the tensor."""
    return SourceError(
        f"{tensor.file}: {escape(tensor.name)} {what}; its weight cannot be computed.",
        "Download the model again, or use the weights it was made from.",
    )


def whole(tensor: Tensor) -> "NDArray[np.float32]":
    """Read a small tensor as fp32 values."""
    values: NDArray[np.float32] = rows_of(tensor, 0, 1, tensor.items).reshape(tensor.shape)
    return values


def rows_of(tensor: Tensor, first: int, count: int, width: int, raw: bool = False) -> Any:
    """Read rows of a tensor as fp32 values, (count, width); ``raw``: as the bytes they are."""
    import numpy as np

    start, size = (n * width * item_bits(tensor.dtype) // 8 for n in (first, count))
    part = replace(tensor, shape=(count * width,), offset=tensor.offset + start, size=size)
    data = b"".join(read_chunks(part))
    values: Any = np.frombuffer(data, np.uint8) if raw else as_float32(data, tensor.dtype)
    return values.reshape(count, -1)


def as_float32(data: bytes, dtype: str) -> "NDArray[np.float32]":
    """Decode values of any dtype that fp32 holds exactly."""
    import numpy as np

    if dtype in FLOATING:
        return np.frombuffer(cast(data, dtype, "F32"), "<f4")
    if dtype == "I8":
        return np.frombuffer(data, np.int8).astype("<f4")
    codes = np.frombuffer(data, np.uint8)
    if dtype == "F8_E5M2":  # the upper half of an fp16
        return (codes.astype("<u2") << 8).view("<f2").astype("<f4")
    if dtype == "F8_E8M0":  # a power of two
        powers = np.ldexp(np.float32(1), np.minimum(codes, 254).astype(np.int32) - 127)
        return np.where(codes == 255, np.float32(np.nan), powers)
    if dtype != "F8_E4M3":
        return codes.astype("<f4")
    # Four bits of exponent with a bias of 7, three of mantissa; all ones is NaN, none is infinite.
    every = np.arange(256)
    exponent, mantissa = every >> 3 & 15, every & 7
    size = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    size = np.where(every & 127 == 127, np.nan, size)
    table: NDArray[np.float32] = np.where(every < 128, size, -size).astype("<f4")
    return table[codes]
