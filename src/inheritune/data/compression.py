"""Decompress a file while it is read, by the ending of its name."""

import gzip
import io
import lzma
from typing import BinaryIO, cast

from inheritune.data.parquet import import_pyarrow

# Of the file's name: pyarrow's name of the compression, which it decompresses.
_BY_PYARROW = {".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


def decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    """Return the decompressed content of an open file; the file itself without such an ending.

    Raises:
        MissingExtraError: pyarrow is needed, and not installed.
    """
    name = name.lower()
    if name.endswith(".xz"):
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if name.endswith(".gz"):  # by Python itself, so that it needs no package
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    compression = next((_BY_PYARROW[e] for e in _BY_PYARROW if name.endswith(e)), None)
    if compression is None:
        return raw
    pyarrow = import_pyarrow(raw.name)
    # It says when a file was cut short, and holds no more than a block, however much comes out.
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression)
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 16))
