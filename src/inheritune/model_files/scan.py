"""Compute digests of the tensors in a file, and find NaN, infinity and zeros, in one pass."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from inheritune.errors import SourceError, escape
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import read_chunks

# Bounds of gemma4's clipped projections; an infinite one clips nothing.
_BOUNDS = (".input_max", ".input_min", ".output_max", ".output_min")
# Bits of the exponent; all of them set means infinity or NaN. The highest 16 bits of F64 and F32
# are enough, since they hold the whole exponent.
_EXPONENT = {"F64": 0x7FF0, "F32": 0x7F80, "BF16": 0x7F80, "F16": 0x7C00}


@dataclass(frozen=True)
class Scan:
    """Digests and properties of one tensor."""

    xxh3: str  # XXH3 digest of its bytes, 128 bits, in hexadecimal; finds accidents, not attacks
    sha256: str | None  # None: not computed, being ten times slower
    finite: bool  # all values are finite; true for dtypes without NaN and infinity
    zero: bool  # all values are zero


def scan(tensors: Iterable[Tensor], *, sha256: bool = False) -> dict[str, Scan]:
    """Read each tensor once, and return the results by name."""
    return {tensor.name: _scan(tensor, sha256) for tensor in tensors}


def _scan(tensor: Tensor, sha256: bool) -> Scan:
    digests: list[Any] = [xxhash.xxh3_128(), *([hashlib.sha256()] if sha256 else [])]
    finite = zero = True
    for data in read_chunks(tensor):
        for digest in digests:
            digest.update(data)
        largest = _largest_magnitude(data, tensor.dtype)
        finite = finite and largest < _EXPONENT.get(tensor.dtype, 0x10000)
        zero = zero and not largest and data.count(0) == len(data)
    texts = [digest.hexdigest() for digest in digests]
    return Scan(texts[0], texts[1] if sha256 else None, finite, zero)


def is_finite(data: bytes, dtype: str) -> bool:
    """Tell whether all values are finite; true for dtypes without NaN and infinity."""
    return _largest_magnitude(data, dtype) < _EXPONENT.get(dtype, 0x10000)


def _largest_magnitude(data: bytes, dtype: str) -> int:
    """Return the maximum of the values' upper 16 bits without sign; 0 for non-floating dtypes."""
    if dtype not in _EXPONENT:
        return 0
    import numpy as np

    items: Any = np.frombuffer(data, "<u2")
    width = {"F64": 4, "F32": 2}.get(dtype, 1)
    if width > 1:
        items = items[width - 1 :: width]
    return int((items & 0x7FFF).max(initial=0))


def not_finite(scans: Mapping[str, Scan]) -> list[str]:
    """List the tensors that hold NaN or infinity where a weight must not."""
    return [n for n, scan in scans.items() if not scan.finite and not n.endswith(_BOUNDS)]


def refuse_not_finite(scans: Mapping[str, Scan], where: Path, unused: Collection[str]) -> None:
    """Refuse weights that hold NaN or infinity.

    Args:
        where: Their source, for the message.
        unused: Names of tensors that the model's class does not use, such as the causal mask of
            -1e9 in old GPT-NeoX files, which is -inf in fp16: these may hold anything.
    """
    if broken := [name for name in not_finite(scans) if name not in unused]:
        more = f" and {len(broken) - 1} other tensors hold" if len(broken) > 1 else " holds"
        raise SourceError(
            f"{escape(broken[0])}{more} NaN or infinite values, from {escape(where, 200)}.",
            "Download the model again; if it was published so, no target can be made of it.",
        )


def zero_matrices(tensors: Sequence[Tensor], scans: dict[str, Scan]) -> list[str]:
    """Return the names of all-zero matrices, usually a sign of an incomplete download."""
    return [t.name for t in tensors if len(t.shape) > 1 and t.items and scans[t.name].zero]
