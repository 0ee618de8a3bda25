"""Write safetensors files from ranges of other files, and spread tensors over files."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.cast import cast
from inheritune.model_files.copy import copy_range, open_source, write_all
from inheritune.model_files.safetensors import Tensor, item_bits

MAX_SHARD_BYTES = 5_000_000_000
# Small enough to stay in a core's cache between reading, converting and writing.
_CHUNK = 2**20
# After this many bytes, the caller may read what is written while the rest is copied.
_GROUP = 2**27


@dataclass(frozen=True)
class TargetTensor:
    """A tensor to write with the values of a tensor on disk."""

    name: str  # name in the new file
    source: Tensor  # where its values lie now
    dtype: str  # dtype in the new file; the values are cast where the source has another one

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in both files."""
        return self.source.shape

    @property
    def size(self) -> int:
        """Bytes in the new file."""
        return self.source.items * item_bits(self.dtype) // 8

    @property
    def origin(self) -> Path:
        """The file its values come from."""
        return self.source.file

    @property
    def is_cast(self) -> bool:
        """Whether its values change their dtype."""
        return self.dtype != self.source.dtype


def split_into_shards(
    tensors: Iterable[TargetTensor], largest: int | None = None
) -> dict[str, list[TargetTensor]]:
    """Spread tensors over files: at least one for each file that they come from, in the same order.

    Args:
        tensors: Those of one origin follow each other.
        largest: Most bytes of a file, unless a single tensor is larger; None: 5 GB.

    Returns:
        The tensors of each file, by the name that transformers gives it.
    """
    limit = largest or MAX_SHARD_BYTES
    shards: list[list[TargetTensor]] = []
    size = 0
    for tensor in tensors:
        size += tensor.size
        if not shards or tensor.origin != shards[-1][-1].origin or size > limit:
            shards.append([])
            size = tensor.size
        shards[-1].append(tensor)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": s for i, s in enumerate(shards, 1)}


def file_header(tensors: Iterable[TargetTensor], metadata: Mapping[str, str]) -> bytes:
    """Make the beginning of a safetensors file: the length of its header, and the header."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.size],
        }
        position += tensor.size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    out: Path, tensors: Sequence[TargetTensor], metadata: Mapping[str, str]
) -> Iterator[list[Tensor]]:
    """Write a file from ranges of other files. The same input gives the same bytes.

    The file is complete when the iterator has ended; it is not synced to the disk.

    Yields:
        The tensors written since the last yield, where they lie in the new file.

    Raises:
        SourceError: A source is shorter than it was when its header was read, or a value does not
            fit the dtype it is cast to.
    """
    ordered = _aligned(tensors)
    header = file_header(ordered, metadata)
    with out.open("xb", buffering=0) as file:
        write_all(file.fileno(), header)
        position = yielded_to = len(header)
        placed: list[Tensor] = []
        for tensor in ordered:
            _copy(tensor, file.fileno())
            place = (out, position, tensor.size)
            placed.append(Tensor(tensor.name, tensor.dtype, tensor.shape, *place))
            position += tensor.size
            if position - yielded_to >= _GROUP:
                yield placed
                placed, yielded_to = [], position
        if placed:
            yield placed


def _aligned(tensors: Sequence[TargetTensor]) -> Sequence[TargetTensor]:
    """Sort tensors by item size, unless each begins at a multiple of its item size already."""
    position = 0
    for tensor in tensors:
        if position % max(item_bits(tensor.dtype) // 8, 1):
            return sorted(tensors, key=lambda t: -item_bits(t.dtype))  # widest first
        position += tensor.size
    return tensors


def _copy(tensor: TargetTensor, target: int) -> None:
    source = tensor.source
    if source.pitch or tensor.is_cast:
        for data in read_chunks(source):
            write_all(target, cast(data, source.dtype, tensor.dtype, source.name))
    else:
        copy_range(source.file, target, source.offset, source.size)


def read_chunks(tensor: Tensor) -> Iterator[bytes]:
    """Yield the bytes of a tensor in pieces of whole items; refuse a file that ends early."""
    with open_source(tensor.file) as file:
        if not tensor.pitch:
            for start in range(0, tensor.size, _CHUNK):
                size = min(_CHUNK, tensor.size - start)
                yield _read(file, tensor, tensor.offset + start, size)
            return
        # Only the beginning of each row belongs to the tensor: read rows whole, join their
        # beginnings.
        rows = tensor.shape[0]
        width = tensor.size // rows
        at_once = max(_CHUNK // tensor.pitch, 1)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            # The last row is read only as far as it is kept: it may end the file.
            size = (count - 1) * tensor.pitch + width
            data = memoryview(_read(file, tensor, tensor.offset + first * tensor.pitch, size))
            starts = range(0, count * tensor.pitch, tensor.pitch)
            yield b"".join(data[start : start + width] for start in starts)


def _read(file: FileIO, tensor: Tensor, offset: int, size: int) -> bytes:
    file.seek(offset)
    pieces: list[bytes] = []
    while size and (data := file.read(size)):
        pieces.append(data)
        size -= len(data)
    if size:
        raise SourceError(
            f"{escape(tensor.file, 200)} ended while {escape(tensor.name)} was read.",
            "Something else changes the file; try again when it is complete.",
        )
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
