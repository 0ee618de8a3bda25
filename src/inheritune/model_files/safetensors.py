"""Read the header of a safetensors file, which says where each tensor lies.

The format: 8 bytes, little-endian, with the length H of the header; H bytes of JSON that map a name
to dtype, shape and ``data_offsets`` (first byte and byte after the last, from byte 8 + H on); then
the data, without holes. The library's own reader gives no offsets and accepts duplicate names.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.copy import open_source
from inheritune.system.strict_json import UNTRUSTED, parse_json

# The library allows 100 MB, which can take gigabytes once parsed. Headers of known files have a few
# MB at most; the limits of UNTRUSTED allow about 55,000 tensors per file.
_MAX_HEADER = 16 * 2**20
_MAX_INT = 2**63 - 1
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"], 8),
    **dict.fromkeys(["F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 16),
    **dict.fromkeys(["U32", "I32", "F32"], 32),
    **dict.fromkeys(["U64", "I64", "F64", "C64"], 64),
}
# Signs of files that are no weights: offset, bytes, name of the format, and the way out.
_FOREIGN = [
    (0, b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` in its repository."),
    (0, b"GGUF", "a GGUF file", "Convert it: `inheritune convert FILE.gguf OUT`."),
    (0, b"\x1f\x8b", "gzip data", "Unpack it."),
    (0, b"BZh", "bzip2 data", "Unpack it."),
    (0, b"\xfd7zXZ", "xz data", "Unpack it."),
    (0, b"7z\xbc\xaf", "a 7z archive", "Unpack it."),
    (0, b"<", "an HTML or XML page", "Download it again: a server answered with a page."),
    (257, b"ustar", "a tar archive", "Unpack it, or save it again with a torch since 0.2."),
]
_PICKLES = ((b"PK\x03\x04", "a zip file or a pickle"), (b"\x80\x02", "a pickle"))
_AGAIN = "Download the file again."


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a range of bytes in a file."""

    name: str  # name on disk, which may differ from the parameter's name in the module
    dtype: str  # in the format's notation, such as ``"BF16"``
    shape: tuple[int, ...]
    file: Path
    offset: int  # first byte, from the start of the file
    size: int
    # Bytes from one row to the next in the file, where only the beginning of each row belongs to
    # the tensor; else 0.
    pitch: int = 0

    @property
    def items(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def item_bits(dtype: str) -> int:
    """Return the bits of one value of a safetensors dtype."""
    return _BITS[dtype]


# Floating dtypes by their names in commands and recipes, and in config.json.
DTYPES = {
    **dict.fromkeys(["fp64", "float64"], "F64"),
    **dict.fromkeys(["fp32", "float32"], "F32"),
    **dict.fromkeys(["fp16", "float16"], "F16"),
    **dict.fromkeys(["bf16", "bfloat16"], "BF16"),
}


def torch_name(dtype: str) -> str:
    """Return torch's name of a safetensors dtype, ``"bfloat16"`` for ``"BF16"``; not for float8."""
    kinds = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex", "BOOL": "bool"}
    letters = dtype.rstrip("0123456789")
    return kinds[letters] + dtype.removeprefix(letters)


def read_header(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """Read the tensors of a file, in the order of their bytes, and the file's metadata.

    Raises:
        SourceError: The file breaks the format: too short, foreign, a header that is not strict
            JSON, unknown dtypes, sizes that do not fit, holes, overlaps.
    """
    with open_source(path) as file:
        try:
            file_size = os.fstat(file.fileno()).st_size
            start = file.read(512) or b""
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or start[8:9] != b"{" or length > min(_MAX_HEADER, file_size - 8):
                raise _not_safetensors(path, start, length, file_size)
            file.seek(8)
            text = file.read(length) or b""
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}.") from error
    header = parse_json(text, f"the header of {path}", UNTRUSTED)
    if not isinstance(header, dict):
        raise SourceError(f"the header of {path} is not a JSON object.", _AGAIN)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SourceError(f"the __metadata__ of {path} is not a map of texts.", _AGAIN)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.offset, t.size, t.name))
    _refuse_gaps(path, tensors, 8 + length, file_size)
    return tensors, metadata


def refuse_foreign(path: Path, start: bytes, expected: str) -> None:
    """Refuse a file whose first 512 bytes show another format; the message names the format."""
    for offset, sign, what, hint in _FOREIGN:
        if (start if offset else start.lstrip()).startswith(sign, offset):
            raise SourceError(f"{path} is {what}, not {expected}.", hint)


def _not_safetensors(path: Path, start: bytes, length: int, file_size: int) -> SourceError:
    refuse_foreign(path, start, "safetensors")
    for sign, what in _PICKLES:
        if start.startswith(sign):
            hint = "Only safetensors are read: nothing is unpickled."
            return SourceError(f"{path} is {what}, not safetensors.", hint)
    if len(start) < 8:
        return SourceError(f"{path} has {file_size} bytes; that is not a safetensors file.", _AGAIN)
    if not any(start[:32]):
        return SourceError(f"{path} begins with zeros: its download was cut off.", _AGAIN)
    if length > _MAX_HEADER:
        return SourceError(
            f"{path} says its header has {length:,} bytes; {_MAX_HEADER:,} are allowed.", _AGAIN
        )
    if length > file_size - 8:
        return SourceError(
            f"{path} says its header has {length:,} bytes, but has {file_size:,} itself.", _AGAIN
        )
    return SourceError(f"the header of {path} is not JSON.", _AGAIN)


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> Tensor:
    def bad(reason: str) -> SourceError:
        return SourceError(f"{path}: tensor {escape(name)!r} {reason}.", _AGAIN)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise bad(f"has the unknown dtype {escape(dtype)!r}")
    if not _counts(shape):
        raise bad(f"has the shape {escape(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"has the data_offsets {escape(offsets)}")
    bits = math.prod(shape) * _BITS[dtype]
    size = offsets[1] - offsets[0]
    if bits != size * 8:
        raise bad(f"of shape {escape(shape)} and dtype {dtype} does not take {size:,} bytes")
    return Tensor(name, sys.intern(dtype), tuple(shape), path, data_start + offsets[0], size)


def _counts(value: Any) -> bool:
    """Tell whether a value is a short list of counts that fit into 63 bits."""
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(v) is int and 0 <= v <= _MAX_INT for v in value)
    )


def _refuse_gaps(path: Path, tensors: Sequence[Tensor], position: int, file_size: int) -> None:
    """Refuse tensors, sorted by offset, that do not cover the data without holes and overlaps."""
    for tensor in tensors:
        name = escape(tensor.name)
        if tensor.offset + tensor.size > file_size:
            raise SourceError(
                f"{path} has {file_size:,} bytes, but tensor {name!r} ends at byte "
                f"{tensor.offset + tensor.size:,}.",
                "It was cut off: download it again.",
            )
        if tensor.offset != position:
            reason = "overlaps the one before it" if tensor.offset < position else "follows a hole"
            raise SourceError(f"{path}: tensor {name!r} {reason}.", _AGAIN)
        position += tensor.size
    if position != file_size:
        raise SourceError(f"{path} has {file_size - position:,} bytes after its tensors.", _AGAIN)
