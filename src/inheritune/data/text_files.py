"""The documents of one file: text, rows of JSONL (plain, .gz, .zst), or rows of parquet.

Reading Zstandard files: a stream that knows when its file was cut short.
"""

import gzip
import io
import json
import stat
import sys
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from inheritune.data.bad_rows import BadRows, decode, text_of
from inheritune.data.document import Document
from inheritune.data.input_files import InputFile
from inheritune.data.parquet import parquet_rows
from inheritune.errors import MissingExtraError

__all__ = ["MAX_DOCUMENT_BYTES", "ZstdFile", "read_documents", "zstd_failure"]

_READ_BYTES = 4096  # of compressed data: a bomb makes 128 MB of them at most


class ZstdFile(io.RawIOBase):
    """The content of a Zstandard file, of any number of frames.

    Args:
        raw: The compressed file.

    Raises:
        MissingExtraError: The package that decompresses it is not installed.
    """

    def __init__(self, raw: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError(
                f"{getattr(raw, 'name', 'a .zst file')} needs the package zstandard.",
                'Install it: pip install "inheritune[data]"',
            ) from error
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._ready = memoryview(b"")

    def buffered(self) -> io.BufferedReader:
        """The same, with lines."""
        return io.BufferedReader(self, 1 << 16)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill a buffer; 0 at the end.

        Raises:
            EOFError: The file ends within a frame.
        """
        view = memoryview(target).cast("B")
        while not self._ready:
            data = self._raw.read(_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its data")
                return 0
            self._ready = memoryview(self._decompress(data))
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            parts.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data = self._frame.unused_data
                self._frame = None
        return b"".join(parts)


def zstd_failure() -> type[Exception]:
    """What the package raises at broken data; where it is not loaded, nothing can."""
    module = sys.modules.get("zstandard")
    return EOFError if module is None else module.ZstdError


MAX_DOCUMENT_BYTES = 256 << 20  # a document is tokenized in memory

# Prose that is one file, such as a book, is cut into documents, so that some can be held out.
_PROSE = (".txt", ".md")
_PART_CHARS = 16_384
_ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_UNREADABLE = (".arrow", ".zst", ".gz", ".bz2", ".xz", ".zip", ".tar", ".7z")


def read_documents(
    file: InputFile, text_column: str, bad: BadRows, start: int = 0
) -> Iterator[tuple[int, int, Document]]:
    """Documents of a file, in its order, from a row on.

    Args:
        file: A ``.parquet`` or ``.jsonl`` file (also ``.gz`` and ``.zst``) holds one document in
            each row. Any other file is one document in UTF-8, except that a .txt or .md file as
            long as a book is cut into documents between paragraphs.
        text_column: Field of a row that holds the text; null or blank text is left out.
        bad: Told of rows and files that cannot be read.
        start: Rows, or parts of a book, to leave out: they were read before.

    Yields:
        The number of rows up to and with this one, about how many bytes of the file they took,
        and the document.

    Raises:
        DataError: There are too many bad rows.
        MissingExtraError: The format needs a package that is not installed.
    """
    try:
        yield from _documents(file, text_column, bad, start)
    except (OSError, EOFError, zlib.error, zstd_failure()) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        bad.add(str(file.path), (reason or str(error)).lower())


def _documents(
    file: InputFile, column: str, bad: BadRows, start: int
) -> Iterator[tuple[int, int, Document]]:
    if not stat.S_ISREG(file.path.stat().st_mode):  # reading a pipe would wait for ever
        bad.add(str(file.path), "it is not a regular file")
    elif file.name.endswith(_ROWS):
        yield from _rows(file, column, bad, start)
    elif file.name.endswith(".parquet"):
        for number, done, row in parquet_rows(file.path, column, bad, start):
            text = text_of(row, column, f"{file.path}, row {number}", bad)
            if text and text.strip():
                yield number, done, Document(f"{file.name}:{number}", text)
    elif file.name.endswith(_UNREADABLE):
        bad.add(str(file.path), "this format is not supported", "Convert it to text or .jsonl.")
    elif file.path.stat().st_size > MAX_DOCUMENT_BYTES:
        bad.add(str(file.path), f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", "Split it up.")
    else:
        yield from _text(file, bad, start)


def _text(file: InputFile, bad: BadRows, start: int) -> Iterator[tuple[int, int, Document]]:
    text = decode(file.path.read_bytes(), str(file.path), bad)
    parts = [text or ""]
    if file.name.endswith(_PROSE) and text and len(text) > 4 * _PART_CHARS:
        parts = _parts(text)
    for number, part in enumerate(parts, 1):
        if number > start and part.strip():
            name = file.name if len(parts) == 1 else f"{file.name}:{number}"
            done = file.path.stat().st_size * number // len(parts)
            yield number, done, Document(name, part, file.train_only)


def _parts(text: str) -> list[str]:
    """A book in documents, cut between paragraphs, or between lines where it has none."""
    gap = "\n\n" if "\n\n" in text else "\n"
    parts, begin = [], 0
    while (end := text.find(gap, begin + _PART_CHARS)) >= 0:
        parts.append(text[begin : end + len(gap)])
        begin = end + len(gap)
    return [*parts, text[begin:]]


def _rows(
    file: InputFile, column: str, bad: BadRows, start: int
) -> Iterator[tuple[int, int, Document]]:
    with file.path.open("rb") as raw:
        for number, line in enumerate(_lines(_decompressed(file.name, raw)), start=1):
            if number <= start:
                continue
            where = f"{file.path}, line {number}"
            if line is None:
                bad.add(where, f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", "Split it up.")
                continue
            decoded = decode(line, where, bad)
            if decoded is None or not decoded.strip():
                continue
            text = _text_of_line(decoded, column, where, bad)
            if text and text.strip():
                yield number, raw.tell(), Document(f"{file.name}:{number}", text)


def _decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    return cast(BinaryIO, ZstdFile(raw).buffered()) if name.endswith(".zst") else raw


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a file; None for one that is too long to be held."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) <= MAX_DOCUMENT_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


def _text_of_line(line: str, column: str, where: str, bad: BadRows) -> str | None:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg.lower() if isinstance(error, json.JSONDecodeError) else "broken"
        bad.add(where, f"it is not JSON: {reason}")
        return None
    if not isinstance(row, dict):
        bad.add(where, "it is not a JSON object")
        return None
    return text_of(row, column, where, bad)
