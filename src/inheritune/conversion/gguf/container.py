"""Read the header of a GGUF file: its metadata, and where each tensor lies.

The format (ggml's docs/gguf.md), all numbers little-endian: ``GGUF``, the version, the numbers of
tensors and of keys; each key with a type and a value; each tensor with its dimensions, fastest
first, its type and its offset; then, from the next multiple of the alignment on, the data.
The file may come from anybody: every count and offset is checked before anything is read by it.
"""

import io
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from inheritune.errors import SourceError, escape
from inheritune.model_files.copy import open_source

_MAX_HEADER = 2**26  # bytes; a vocabulary of 262,144 tokens takes 8 MB
_MAX_NAME = 256
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
AGAIN = "Download the file again."
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Formats of the numbers among the value types.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIifBQqd", strict=True))
# Values and bytes of a block, by the type's number in ggml.h.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
PLAIN = ("F32", "F16", "BF16")
"""Types whose values are stored as they are."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a GGUF file."""

    name: str
    type: str  # ggml's name, such as ``"Q4_K"``
    shape: tuple[int, ...]  # slowest dimension first, as in torch
    offset: int  # first byte, from the start of the file
    size: int

    @property
    def items(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: of the values along the last dimension."""
        _, values, size = _BY_NAME[self.type]
        return self.shape[-1] // values * size


_BY_NAME = {block[0]: block for block in _TYPES.values()}


@dataclass(frozen=True)
class Container:
    """The header of a GGUF file."""

    path: Path
    metadata: Mapping[str, Any]  # numbers, truth values, texts and lists of them
    tensors: Mapping[str, Entry]  # in the order of their bytes

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as ``"llama"``; empty if there is none."""
        name = self.metadata.get("general.architecture")
        return name if isinstance(name, str) else ""


def is_gguf(path: Path) -> bool:
    """Tell whether a path is a file that begins as a GGUF file does."""
    if not path.is_file():
        return False
    with open_source(path) as file:
        return file.read(4) == b"GGUF"


def read_container(path: Path) -> Container:
    """Read the header of a GGUF file of version 2 or 3.

    Raises:
        SourceError: The file breaks the format: another version, a header that is too long, counts
            and sizes that do not fit, unknown types, names twice, holes, overlaps, or an early end.
    """
    with io.BufferedReader(open_source(path)) as file:
        return _Reader(path, file, os.fstat(file.fileno()).st_size).container()


class _Reader:
    """Reads one header from front to back."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._position = 0

    def container(self) -> Container:
        if self._bytes(4, "its first bytes") != b"GGUF":
            raise SourceError(f"{self._path} is no GGUF file.", AGAIN)
        version = self._number("I")
        if version not in (2, 3):
            reversed_order = version in (2 << 24, 3 << 24)
            kind = "big-endian GGUF" if reversed_order else f"GGUF version {version}"
            raise SourceError(
                f"{self._path} is {kind}; little-endian files of version 2 and 3 are read.",
                "Make it again with a llama.cpp of today.",
            )
        tensors, keys = self._number("Q"), self._number("Q")
        # A tensor takes 24 bytes at least and a key 13: no count can be larger.
        if tensors * 24 + keys * 13 > self._rest():
            raise self._broken(f"says that it has {tensors:,} tensors and {keys:,} keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._name("a key")
            if key in metadata:
                raise self._broken(f"has the key {escape(key)} twice")
            metadata[key] = self._value(self._number("I"), key)
        described = [self._tensor() for _ in range(tensors)]
        start = _aligned(self._position, self._alignment(metadata))
        placed = self._placed(described, start, self._alignment(metadata))
        return Container(self._path, metadata, placed)

    # --- values ---

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _NUMBERS:
            raise self._broken(f"gives {escape(key)} the unknown type {kind}")
        number = self._number(_NUMBERS[kind])
        return bool(number) if kind == _BOOL else number

    def _array(self, key: str) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING and count * 8 <= self._rest():
            return [self._text(key) for _ in range(count)]
        letter = _NUMBERS.get(kind)
        if letter is None or count * struct.calcsize(letter) > self._rest():
            raise self._broken(f"gives {escape(key)} {count:,} values of type {kind}")
        data = self._bytes(count * struct.calcsize(letter), key)
        numbers = list(struct.unpack(f"<{count}{letter}", data))
        return [bool(number) for number in numbers] if kind == _BOOL else numbers

    def _text(self, key: str) -> str:
        # Byte-level vocabularies of old files hold tokens that are no UTF-8.
        return self._bytes(self._number("Q"), key).decode("utf-8", "replace")

    def _name(self, what: str) -> str:
        length = self._number("Q")
        if not 0 < length <= _MAX_NAME:
            raise self._broken(f"has a name of {length:,} bytes for {what}")
        try:
            return self._bytes(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"has a name for {what} that is not UTF-8") from error

    def _number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self._bytes(struct.calcsize(letter), "a number"))[0]

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._rest():
            raise self._broken(f"gives {escape(what)} {count:,} bytes, more than its header has")
        self._position += count
        return self._file.read(count)

    def _rest(self) -> int:
        return min(self._size, _MAX_HEADER) - self._position

    # --- tensors ---

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._name("a tensor")
        count = self._number("I")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise self._broken(f"gives {escape(name)} {count:,} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(count)]))
        number, offset = self._number("I"), self._number("Q")
        if number not in _TYPES:
            raise SourceError(
                f"{self._path}: {escape(name)} has ggml's type {number}, which is not read.",
                "Use a file of the model in F16, BF16, Q8_0 or a K-quant.",
            )
        type_name, values, _ = _TYPES[number]
        if not all(shape) or math.prod(shape) >= 2**53 or shape[-1] % values:
            raise self._broken(f"gives {escape(name)} of type {type_name} the shape {list(shape)}")
        return name, type_name, shape, offset

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(value) is not int or not 1 <= value <= 2**20 or value & (value - 1):
            raise self._broken(f"has the alignment {escape(value)}")
        return value

    def _placed(
        self, described: list[tuple[str, str, tuple[int, ...], int]], start: int, alignment: int
    ) -> dict[str, Entry]:
        """Place the tensors, and refuse names twice, overlaps, holes and a file cut off."""
        placed: dict[str, Entry] = {}
        position = start
        for name, kind, shape, offset in sorted(described, key=lambda entry: entry[3]):
            _, values, block = _BY_NAME[kind]
            entry = Entry(name, kind, shape, start + offset, math.prod(shape) // values * block)
            if name in placed:
                raise self._broken(f"has the tensor {escape(name)} twice")
            if entry.offset != position:
                raise self._broken(f"has {escape(name)} at byte {entry.offset:,}, not {position:,}")
            if entry.offset + entry.size > self._size:
                raise SourceError(
                    f"{self._path} has {self._size:,} bytes, but {escape(name)} ends at byte "
                    f"{entry.offset + entry.size:,}.",
                    "It was cut off: download it again.",
                )
            placed[name] = entry
            position = _aligned(entry.offset + entry.size, alignment)
        return placed

    def _broken(self, reason: str) -> SourceError:
        return SourceError(f"{self._path} {reason}.", AGAIN)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
