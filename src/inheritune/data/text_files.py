"""Read the documents of one file: text, rows of JSONL (plain or compressed), or of parquet."""

import gzip
import io
import json
import stat
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from inheritune.data.bad_rows import BadRows, decode, text_of
from inheritune.data.document import Document
from inheritune.data.input_files import InputFile
from inheritune.data.parquet import import_pyarrow, parquet_rows
from inheritune.errors import reason_of

MAX_DOCUMENT_BYTES = 256 << 20  # a document is tokenized in memory
_MOST_BLANK = 10_000_000  # rows without text, one after the other: a few KB hold any number

# Prose that is one file, such as a book, is cut into documents, so that some can be held out.
_PROSE = (".txt", ".md")
_PART_CHARS = 16_384
# Of the file's name: pyarrow's name of the compression, which it decompresses.
_COMPRESSED = {".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_ROWS = (".jsonl", ".jsonl.gz", *(f".jsonl{ending}" for ending in _COMPRESSED))
_UNREADABLE = (".arrow", ".gz", *_COMPRESSED, ".xz", ".zip", ".tar", ".7z")


def read_documents(
    file: InputFile, text_column: str, bad: BadRows, start: int = 0
) -> Iterator[tuple[int, int, Document]]:
    """Read the documents of a file in its order, one held in memory at a time.

    Args:
        file: A ``.parquet`` or ``.jsonl`` file (also ``.gz``, ``.zst``, ``.bz2``, ``.lz4``) holds
            one document in each row. Any other file is one document in UTF-8, except that a .txt
            or .md file as long as a book is cut into documents between paragraphs.
        text_column: Field of a row that holds the text; null or blank text is left out.
        bad: Counts the rows and files that cannot be read.
        start: Rows, or parts of a book, to skip.

    Yields:
        The number of rows up to and with this one; the approximate number of bytes of the file
        that they took; and the document.

    Raises:
        DataError: There are too many bad rows.
        MissingExtraError: The format needs a package that is not installed.
    """
    try:
        yield from _documents(file, text_column, bad, start)
    except (OSError, EOFError, zlib.error) as error:
        bad.add(str(file.path), reason_of(error))


def _documents(
    file: InputFile, column: str, bad: BadRows, start: int
) -> Iterator[tuple[int, int, Document]]:
    if not stat.S_ISREG(file.path.stat().st_mode):  # reading a pipe would wait for ever
        bad.add(str(file.path), "it is not a regular file")
    elif file.name.endswith(_ROWS):
        yield from _with_text(file, _json_rows(file, column, bad, start), bad)
    elif file.name.endswith(".parquet"):
        rows = parquet_rows(file.path, column, bad, start)
        texts = (
            (n, size, text_of(row, column, f"{file.path}, row {n}", bad)) for n, size, row in rows
        )
        yield from _with_text(file, texts, bad)
    elif file.name.endswith(_UNREADABLE):
        bad.add(str(file.path), "this format is not supported", "Convert it to text or .jsonl.")
    elif file.path.stat().st_size > MAX_DOCUMENT_BYTES:
        bad.add(str(file.path), f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", "Split it up.")
    else:
        yield from _text(file, bad, start)


def _with_text(
    file: InputFile, rows: Iterator[tuple[int, int, str | None]], bad: BadRows
) -> Iterator[tuple[int, int, Document]]:
    """Make documents of the rows that hold text."""
    blank = 0
    for number, bytes_read, text in rows:
        if text and text.strip():
            blank = 0
            yield number, bytes_read, Document(f"{file.name}:{number}", text)
        elif (blank := blank + 1) >= _MOST_BLANK:
            bad.add(str(file.path), f"{_MOST_BLANK:,} rows up to row {number:,} hold no text")
            return


# --- text ---


def _text(file: InputFile, bad: BadRows, start: int) -> Iterator[tuple[int, int, Document]]:
    text = decode(file.path.read_bytes(), str(file.path), bad)
    parts = [text or ""]
    if file.name.endswith(_PROSE) and text and len(text) > 4 * _PART_CHARS:
        parts = _parts(text)
    for number, part in enumerate(parts, 1):
        if number > start and part.strip():
            name = file.name if len(parts) == 1 else f"{file.name}:{number}"
            bytes_read = file.path.stat().st_size * number // len(parts)
            yield number, bytes_read, Document(name, part, file.train_only)


def _parts(text: str) -> list[str]:
    """Cut a book into documents between paragraphs, or between lines where it has none."""
    gap = "\n\n" if "\n\n" in text else "\n"
    parts, begin = [], 0
    while (end := text.find(gap, begin + _PART_CHARS)) >= 0:
        parts.append(text[begin : end + len(gap)])
        begin = end + len(gap)
    return [*parts, text[begin:]]


# --- rows of JSON ---


def _json_rows(
    file: InputFile, column: str, bad: BadRows, start: int
) -> Iterator[tuple[int, int, str | None]]:
    with file.path.open("rb") as raw:
        for number, line in enumerate(_lines(_decompressed(file.name, raw)), start=1):
            if number <= start:
                continue
            yield (
                number,
                raw.tell(),
                _text_of_line(line, column, f"{file.path}, line {number}", bad),
            )


def _decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    if name.endswith(".gz"):  # by Python itself, so that it needs no package
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    compression = next((_COMPRESSED[e] for e in _COMPRESSED if name.endswith(e)), None)
    if compression is None:
        return raw
    pyarrow = import_pyarrow(raw.name)
    # It says when a file was cut short, and holds no more than a block, however much comes out.
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression)
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 16))


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for one that is too long to be held in memory."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) <= MAX_DOCUMENT_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


def _text_of_line(line: bytes | None, column: str, where: str, bad: BadRows) -> str | None:
    if line is None:
        bad.add(where, f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", "Split it up.")
        return None
    decoded = decode(line, where, bad)
    if decoded is None or not decoded.strip():
        return None
    try:
        row: Any = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        reason = error.msg.lower() if isinstance(error, json.JSONDecodeError) else "broken"
        bad.add(where, f"it is not JSON: {reason}")
        return None
    if not isinstance(row, dict):
        bad.add(where, "it is not a JSON object")
        return None
    return text_of(row, column, where, bad)
