"""Recognize how a file of ids is laid out: by its header, or by the index that lies beside it."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.file_kinds import kind_by_signature
from inheritune.errors import DataError
from inheritune.system.reading import read_regular_file

HEAD_BYTES = 1024  # of a file, enough for every header
_FORMATS = "Give a .bin file of uint16 or uint32 ids, or a .ds file of datatrove."
_AGAIN = "Fetch both again."

_LITGPT = b"LITPKDS"  # magic; then version as 8 bytes, type as 1, ids in a chunk as 8
_LITGPT_HEADER = 24
_LITGPT_TYPES = {8: 2, 4: 4, 3: 2}  # of the header: bytes of an id
# 256 int32: magic, version, number of ids. llm.c's dev/data/data_common.py, `write_datafile`:
# that of gpt-2 has ids of 2 bytes, that of llama-3 of 4.
_LLM_C_WIDTHS = {(20240520, 1): 2, (20240801, 7): 4}
_LLM_C_MAGICS = {magic for magic, _ in _LLM_C_WIDTHS}
# Megatron-LM's core/datasets/indexed_dataset.py, `DType`: bytes of an id.
_MEGATRON, _MEGATRON_TYPES = b"MMIDIDX\0\0", {3: 2, 4: 4, 5: 8, 8: 2}
# litdata's constants, `_TORCH_DTYPES_MAPPING`: int16, int32, int64.
_LITDATA_TYPES = {13: 2, 14: 2, 15: 4, 16: 4, 17: 8, 18: 8}
_MOST_METADATA, _MOST_INDEX = 1 << 20, 1 << 33  # bytes; an index has up to 20 for each document


@dataclass(frozen=True)
class Layout:
    """Where the ids of a file lie."""

    format: str  # "flat", "litgpt", "llm.c", "litdata", "megatron" or "datatrove"
    offset: int = 0  # bytes before the ids
    width: int | None = None  # bytes of an id; None: the file does not say
    count: int | None = None  # ids; None: up to the end of the file
    ends: NDArray[np.int64] | None = None  # of documents, in ids; None: at EOS


def layout_of(path: Path, head: bytes, size: int) -> Layout:
    """Recognize the layout of a file of ids; ``"flat"`` where nothing says otherwise.

    Args:
        head: The first `HEAD_BYTES` of the file.
        size: Its bytes.

    Raises:
        DataError: It is a file of another kind, or its index does not fit.
        OSError: The index beside it cannot be read.
    """
    for recognize in (_datatrove, _megatron, _litgpt, _llm_c, _litdata):
        if (layout := recognize(path, head, size)) is not None:
            return layout
    kind = kind_by_signature(head)
    if kind == "a shard of prepared tokens":
        raise DataError(f"{path} is {kind}.", "Name its directory instead.")
    if kind is None and head[:1] in b"{[" and head[:64].isascii() and b'"' in head[:64]:
        kind = "a JSON file"
    if kind is not None and head:
        raise DataError(f"{path} is {kind}, not a file of ids.", _FORMATS)
    return Layout("flat")


def _litgpt(path: Path, head: bytes, size: int) -> Layout | None:
    if head[:7] != _LITGPT:
        return None
    width = _LITGPT_TYPES.get(head[15]) if len(head) >= _LITGPT_HEADER else None
    if int.from_bytes(head[7:15], "little") != 1 or width is None:
        raise DataError(f"{path} is a litgpt file of ids in an unknown version or type.", _FORMATS)
    return Layout("litgpt", _LITGPT_HEADER, width)


def _llm_c(path: Path, head: bytes, size: int) -> Layout | None:
    if len(head) < HEAD_BYTES:
        return None
    magic, version, count = np.frombuffer(head[:12], dtype="<i4").tolist()
    if magic not in _LLM_C_MAGICS:
        return None
    if (magic, version) not in _LLM_C_WIDTHS:
        raise DataError(f"{path} is a file of llm.c in the unknown version {version}.", _FORMATS)
    return Layout("llm.c", HEAD_BYTES, _LLM_C_WIDTHS[magic, version], count)


def _litdata(path: Path, head: bytes, size: int) -> Layout | None:
    """Recognize a chunk: number of items, where each begins and the last ends (uint32), ids."""
    items = int.from_bytes(head[:4], "little")
    first = 4 * (items + 2)
    if not 0 < first < size or int.from_bytes(head[4:8], "little") != first:
        return None
    bounds = np.fromfile(path, dtype="<u4", count=items + 1, offset=4).astype(np.int64)
    if bounds[-1] != size or (bounds[1:] < bounds[:-1]).any():
        return None
    index = path.with_name("index.json")
    if not index.exists():
        raise DataError(
            f"{path} is a chunk of litdata, and its index.json is missing.",
            f"Fetch {index}: it says the type of the ids.",
        )
    config = _json_object(_read(index, _MOST_INDEX)).get("config")
    config = config if isinstance(config, dict) else {}
    width = _litdata_width(config.get("data_format"))
    if width is None or config.get("compression"):
        raise DataError(
            f"{path} is a chunk of litdata, and {index} says that it holds no plain ids.",
            "Give chunks of token ids without compression.",
        )
    return Layout("litdata", first, width, None, (bounds[1:] - first) // width)


def _litdata_width(data_format: Any) -> int | None:
    if not isinstance(data_format, list) or len(data_format) != 1:
        return None
    name, _, code = str(data_format[0]).partition(":")
    return _LITDATA_TYPES.get(int(code)) if name == "no_header_tensor" and code.isdigit() else None


def _megatron(path: Path, head: bytes, size: int) -> Layout | None:
    """Read the ``.idx`` beside a ``.bin``.

    It holds magic, version (uint64), type (a byte), numbers of sequences and of documents plus
    one (uint64); then length (int32) and place in bytes (int64) of every sequence, and the number
    of the first sequence (int64) of every document.
    """
    beside = path.with_suffix(".idx")
    if path.suffix != ".bin" or not beside.exists():
        return None
    content = _read(beside, _MOST_INDEX)
    if content[:9] != _MEGATRON or len(content) < 34:
        raise DataError(f"{beside} is no index of Megatron.", "Take it away, or fetch it again.")
    version, code, sequences, bounds = struct.unpack_from("<QBQQ", content, 9)
    width = _MEGATRON_TYPES.get(code)
    if version != 1 or width is None:
        raise DataError(f"{beside} is of version {version}, type {code}: unknown.", _FORMATS)
    unfit = DataError(f"{beside} does not fit {path}, which has {size} bytes.", _AGAIN)
    if len(content) < 34 + 12 * sequences + 8 * bounds or not sequences or bounds < 2:
        raise unfit
    lengths = np.frombuffer(content, "<i4", sequences, 34).astype(np.int64)
    places = np.frombuffer(content, "<i8", sequences, 34 + 4 * sequences)
    firsts = np.frombuffer(content, "<i8", bounds, 34 + 12 * sequences)
    ends = np.cumsum(lengths)
    in_order = np.array_equal(places, (ends - lengths) * width) and not (lengths < 0).any()
    if not in_order or ends[-1] * width != size:
        raise unfit
    if firsts[0] != 0 or firsts[-1] != sequences or (firsts[1:] < firsts[:-1]).any():
        raise unfit
    return Layout("megatron", 0, width, None, np.concatenate([[0], ends])[firsts[1:]])


def _datatrove(path: Path, head: bytes, size: int) -> Layout | None:
    if path.suffix != ".ds":
        return None
    return Layout("datatrove", 0, _datatrove_width(path), None, _datatrove_ends(path))


def _datatrove_width(path: Path) -> int | None:
    """Read the bytes of an id from the metadata beside a file: text, or JSON in newer versions."""
    beside = path.with_name(path.name + ".metadata")
    if not beside.exists():
        return None
    lines = _read(beside, _MOST_METADATA).decode(errors="replace").splitlines()
    # JSON; or the tokenizer's name and the width, then the number of ids, each on a line.
    size = _json_object("\n".join(lines).encode()).get("token_size")
    if size is None and lines:
        size = lines[0].rpartition("|")[2]
    return {"2": 2, "4": 4}.get(str(size))


def _datatrove_ends(path: Path) -> NDArray[np.int64] | None:
    beside = path.with_name(path.name + ".index")
    if not beside.exists():
        return None
    content = _read(beside, _MOST_INDEX)
    if len(content) % 8:
        raise DataError(f"{beside} has {len(content)} bytes, not 8 each.", "Fetch it again.")
    return np.frombuffer(content, dtype="<u8").astype(np.int64)


def _json_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; an empty one where it is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read(beside: Path, limit: int) -> bytes:
    try:
        return read_regular_file(beside, limit)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(beside)) from error
