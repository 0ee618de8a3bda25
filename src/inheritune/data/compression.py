"""Decompress a file while it is read, by the ending of its name."""

import gzip
import io
import lzma
import platform
import sys
import zlib
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, BinaryIO, cast

from inheritune.data.parquet import import_pyarrow

zstd: Any = None  # None where it is not installed
with suppress(ImportError):
    zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Errors that are raised while a damaged or unreadable file is read."""
if zstd is not None:
    DAMAGE = (*DAMAGE, zstd.ZstdError)

# Of the file's name: pyarrow's name of the compression, which it decompresses.
_BY_PYARROW = {".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_LONGEST_WINDOW = 31  # of zstd's own --long: 2 GiB, which are held while such a file is read


def readers() -> dict[str, str]:
    """Return the versions of what reads files, which decide how far each is read at a time."""
    found = {"Python": platform.python_version()}
    found["libzstd"] = "none" if zstd is None else zstd.zstd_version
    for package in ("backports.zstd", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    """Return the decompressed content of an open file; the file itself without such an ending.

    Raises:
        MissingExtraError: A package is needed, and not installed.
    """
    name = name.lower()
    if name.endswith(".xz"):
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if name.endswith(".gz"):  # by Python itself, so that it needs no package
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if name.endswith(".zst") and zstd is not None:
        limit = {zstd.DecompressionParameter.window_log_max: _LONGEST_WINDOW}
        return cast(BinaryIO, zstd.ZstdFile(raw, options=limit))
    compression = next((_BY_PYARROW[e] for e in _BY_PYARROW if name.endswith(e)), None)
    if compression is None:
        return raw
    pyarrow = import_pyarrow(raw.name)
    # It says when a file was cut short, and holds no more than a block, however much comes out.
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression)
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 16))
