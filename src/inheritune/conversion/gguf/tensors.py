"""Read the tensors of a GGUF file as those of a model directory, undoing llama.cpp's changes.

llama.cpp stores a model's matrices with rows in another order, all experts of a layer in one
tensor, some norms with 1 added. A row lies in a row of bytes however it is quantised, so that
orders and experts are undone on bytes, and only the rows in hand are ever dequantised.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inheritune.conversion.gguf.architectures import Architecture
from inheritune.conversion.gguf.container import AGAIN, PLAIN, Container, Entry
from inheritune.conversion.gguf.metadata import SAFETENSORS
from inheritune.errors import MissingExtraError, SourceError, UnsupportedModelError, escape
from inheritune.model_files.cast import cast
from inheritune.model_files.copy import open_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 2**24  # bytes dequantised at a time
_MOST_EXPERTS = 1024  # llama.cpp's LLAMA_MAX_EXPERTS is 512; each becomes three tensors
_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(\w+)\.(weight|bias)")
# Tensors that hold scalings of rotary positions: the config has them.
ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Piece:
    """A tensor of the model directory, and where its values lie in the GGUF file."""

    name: str
    entry: Entry
    shape: tuple[int, ...]
    first: int = 0  # row of the entry at which it begins
    heads: int = 0  # if not 0: rows are paired in each of so many heads
    fused_heads: int = 0  # if not 0: rows of queries, keys and values of so many heads are fused
    is_transposed: bool = False
    shift: float = 0.0  # what was added to the values


def pieces_of(
    container: Container, architecture: Architecture, heads: int, kv_heads: int
) -> list[Piece]:
    """List the tensors of the model directory in the order of the file.

    Raises:
        UnsupportedModelError: The file holds a tensor that has no place in the model.
        SourceError: A tensor has a shape that does not fit its heads or experts.
    """
    pieces: list[Piece] = []
    experts = container.metadata.get(f"{container.architecture}.expert_count")
    for entry in container.tensors.values():
        if entry.name in ROTARY:
            continue
        part, target, suffix = _place(entry, architecture)
        is_norm = part.endswith("_norm") and suffix == "weight"
        counts = {"attn_q": heads, "attn_k": kv_heads}
        if "{}" in target:
            pieces += _experts(entry, f"{target}.{suffix}", experts)
            continue
        transposed = part in architecture.transposed and len(entry.shape) == 2
        shape = tuple(reversed(entry.shape)) if transposed else entry.shape
        if part == "ffn_gate_inp_shexp":  # quantising drops a dimension of one row
            shape = (1, entry.items)
        pieces.append(
            Piece(
                f"{target}.{suffix}",
                entry,
                shape,
                heads=counts.get(part, 0) if architecture.is_permuted else 0,
                fused_heads=heads if part == architecture.fused else 0,
                is_transposed=transposed,
                shift=architecture.norm_shift if is_norm else 0.0,
            )
        )
    for piece in pieces:
        _refuse_odd_rows(piece)
    return pieces


def _place(entry: Entry, architecture: Architecture) -> tuple[str, str, str]:
    """Return the part of the model that a tensor is, its name there, and ``weight`` or ``bias``."""
    if match := _LAYER.fullmatch(entry.name):
        number, part, suffix = match.groups()
        if name := architecture.layer.get(part):
            return part, f"{architecture.layers}.{number}.{name}", suffix
    elif match := _OUTSIDE.fullmatch(entry.name):
        part, suffix = match.groups()
        if name := architecture.outer.get(part):
            return part, name, suffix
    raise UnsupportedModelError(
        f"{architecture.class_name} has no place for the tensor {escape(entry.name)}.",
        SAFETENSORS,
    )


def _experts(entry: Entry, name: str, experts: Any) -> list[Piece]:
    if len(entry.shape) != 3 or entry.shape[0] != experts or experts > _MOST_EXPERTS:
        raise SourceError(
            f"{escape(entry.name)} has the shape {list(entry.shape)}, not that of the matrices of "
            f"{escape(experts, 40)} experts; at most {_MOST_EXPERTS:,} are read.",
            AGAIN,
        )
    count, rows, columns = entry.shape
    return [Piece(name.format(i), entry, (rows, columns), first=i * rows) for i in range(count)]


def _refuse_odd_rows(piece: Piece) -> None:
    rows = piece.shape[0]
    groups = piece.heads * 2 or piece.fused_heads * 3 or 1
    is_bytes = len(piece.entry.shape) > 1 or piece.entry.type in PLAIN
    if rows % groups or (groups > 1 and not is_bytes):
        raise SourceError(
            f"{escape(piece.entry.name)} has {rows} rows, which {groups} do not divide."
        )


# --- values ---


def values_of(container: Container, piece: Piece) -> Iterator["NDArray[np.float32]"]:
    """Yield the values of a tensor in order, as fp32, some rows at a time.

    A tensor of which rows or columns change places is read whole.

    Raises:
        SourceError: The file ends early.
        MissingExtraError: The values are quantised, and the package gguf is not installed.
    """
    import numpy as np

    entry = piece.entry
    width = entry.shape[-1] if len(entry.shape) > 1 else 1
    row_bytes = entry.row_bytes if len(entry.shape) > 1 else entry.size // entry.items
    if len(entry.shape) == 1 and entry.type not in PLAIN:
        width, row_bytes = entry.items, entry.size
    count = int(np.prod(piece.shape)) // width
    order = _order(piece, count)
    at_once = count if order is not None or piece.is_transposed else max(_CHUNK // (4 * width), 1)
    with open_source(container.path) as file:
        for start in range(0, count, at_once):
            rows = min(at_once, count - start)
            file.seek(entry.offset + (piece.first + start) * row_bytes)
            data = file.read(rows * row_bytes) or b""
            if len(data) != rows * row_bytes:
                raise SourceError(
                    f"{container.path} ended while {escape(entry.name)} was read.",
                    "Something else changes the file; try again when it is complete.",
                )
            raw = np.frombuffer(data, np.uint8).reshape(rows, row_bytes)
            values = dequantise(raw if order is None else raw[order], entry.type)
            yield values.T if piece.is_transposed else values


def _order(piece: Piece, rows: int) -> "NDArray[np.int64] | None":
    """Return the row of the file that each row of the tensor is; None where they are the same.

    llama.cpp rotates neighbouring values of a head, transformers those half a head apart: row
    (h, i, j) of the model, i of 2, is row (h, j, i) of the file. For GPT-NeoX, row (head, part, i),
    with parts queries, keys and values, is row (part, head, i).
    """
    import numpy as np

    if piece.heads:
        shape = (piece.heads, -1, 2)
        return np.arange(rows).reshape(shape).swapaxes(1, 2).reshape(-1)
    if piece.fused_heads:
        shape = (3, piece.fused_heads, -1)
        return np.arange(rows).reshape(shape).swapaxes(0, 1).reshape(-1)
    return None


def dequantise(raw: "NDArray[np.uint8]", kind: str) -> "NDArray[np.float32]":
    """Return the values of rows of bytes as fp32, which holds every one of them exactly.

    Args:
        raw: Bytes, (rows, bytes of a row).
        kind: ggml's name of the type.

    Returns:
        Values, (rows, values of a row). NaN stays NaN.
    """
    import numpy as np

    if kind in PLAIN:
        values = np.frombuffer(cast(raw.tobytes(), kind, "F32"), "<f4")
        return values.reshape(len(raw), -1)
    quants, types = _import_gguf(kind)
    with np.errstate(all="ignore"):  # scales that are no numbers are told of elsewhere
        result: NDArray[np.float32] = quants.dequantize(raw, types[kind])
    return result


def _import_gguf(kind: str) -> tuple[Any, Any]:
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise MissingExtraError(
            f"values of type {kind} need the package gguf.",
            'Install it: pip install "inheritune[gguf]"',
        ) from error
    return quants, GGMLQuantizationType


def small_tensor(container: Container, name: str) -> list[float] | None:
    """Return the values of a tensor outside the layers; None where there is none."""
    entry = container.tensors.get(name)
    if entry is None:
        return None
    chunks = list(values_of(container, Piece(name, entry, entry.shape)))
    return [float(value) for chunk in chunks for value in chunk.reshape(-1)]
