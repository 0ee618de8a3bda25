"""Read the documents of one file, in any format of `text_formats`."""

import json
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from inheritune.data.arrow import arrow_rows
from inheritune.data.bad_rows import BadRows, decode
from inheritune.data.compression import DAMAGE, decompressed, zstd
from inheritune.data.document import MAX_DOCUMENT_BYTES, Document
from inheritune.data.file_kinds import POINTER, WAYS_OUT, kind_by_signature
from inheritune.data.input_files import InputFile
from inheritune.data.parquet import parquet_rows
from inheritune.data.table import table_rows
from inheritune.data.text_column import TextColumn
from inheritune.data.text_formats import (
    ARROW,
    JSON,
    LINES,
    MARKUP,
    PARQUET,
    PROSE,
    TABLE,
    TEXT,
    UNREADABLE,
    TextFormat,
    format_of,
    is_one_object,
    no_text,
    without_compression,
)
from inheritune.errors import first_line, reason_of

_MOST_BLANK = 10_000_000  # rows without text, one after the other: a few KB hold any number

# Prose that is one file, such as a book, is cut into documents, so that some can be held out.
_PART_CHARS = 16_384
SEPARATOR = b"<|endoftext|>"
_HEAD = 1 << 20  # bytes of a .txt in which a separator is looked for


def read_documents(
    file: InputFile, column: TextColumn, bad: BadRows, start: int = 0
) -> Iterator[tuple[int, int, Document]]:
    """Read the documents of a file in its order, one held in memory at a time.

    Args:
        file: Read as `text_formats.FORMATS` says of its name; a file whose beginning shows
            that it is of another kind is bad.
        column: Takes the text out of a row. Null or blank text is left out.
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
        yield from _documents(file, column, bad, start)
    except DAMAGE as error:
        what, hint = reason_of(error), ""
        if "too much memory" in what and zstd is None:  # of pyarrow: the window is above 128 MB
            hint = 'The file is sound, its window long: pip install "inheritune[data]" reads it.'
        bad.add(str(file.path), what, hint)


def _documents(
    file: InputFile, column: TextColumn, bad: BadRows, start: int
) -> Iterator[tuple[int, int, Document]]:
    if not stat.S_ISREG(file.path.stat().st_mode):  # reading a pipe would wait for ever
        bad.add(str(file.path), "it is not a regular file")
        return
    text_format = format_of(file.read_as)
    with file.path.open("rb") as raw:
        is_pointer = kind_by_signature(raw.read(64)) == POINTER
    if is_pointer:  # whatever its name: of a data set that was cloned without Git LFS
        bad.add(str(file.path), f"it is {POINTER}", f"{WAYS_OUT[POINTER]}.")
    elif text_format is UNREADABLE:
        bad.add(str(file.path), "this format is not supported", "Convert it to text or .jsonl.")
    elif text_format is PARQUET:
        rows = _texts(file, parquet_rows(file.path, column, bad, start), column, bad)
        yield from _with_text(file, rows, bad, column)
    elif text_format in (LINES, JSON):
        rows = _json_rows(file, column, bad, start)
        if text_format is JSON and is_one_object(file.path):
            bad.add(str(file.path), "it is one JSON object, not rows", "Write one row a line.")
            return
        if text_format is JSON and _is_array(file):
            rows = _texts(file, _array_rows(file, bad, start), column, bad)
        yield from _with_text(file, rows, bad, column)
    elif text_format in (TABLE, ARROW):
        read = table_rows if text_format is TABLE else arrow_rows
        yield from _with_text(file, _texts(file, read(file, bad, start), column, bad), bad, column)
    else:
        yield from _prose(file, text_format, bad, start)


def _prose(
    file: InputFile, text_format: TextFormat, bad: BadRows, start: int
) -> Iterator[tuple[int, int, Document]]:
    with file.path.open("rb") as raw:
        head = decompressed(file.read_as, raw).read(_HEAD)
    kind = kind_by_signature(head[:64])
    if file.given is None and (text_format is TEXT or kind is None):
        kind = no_text(head[:4096], without_compression(file.name))
    if kind is not None:
        hint = f"{WAYS_OUT.get(kind, 'Leave it out')}."
        if kind in MARKUP:
            hint = f"{hint[:-1]}, or take it as text: data.format: text."
        bad.add(str(file.path), f"it is {kind}, not plain text", hint)
    elif separator := _separator(file, head):
        yield from _with_text(file, _separated(file, separator, bad, start), bad)
    else:
        yield from _text(file, text_format, bad, start)


def _with_text(
    file: InputFile,
    rows: Iterator[tuple[int, int, str | None]],
    bad: BadRows,
    column: TextColumn | None = None,
) -> Iterator[tuple[int, int, Document]]:
    """Make documents of the rows that hold text."""
    blank, is_rendered = 0, column is not None and column.render is not None
    for number, bytes_read, text in rows:
        if text and text.strip():
            blank = 0
            document = Document(f"{file.name}:{number}", text, is_rendered=is_rendered)
            yield number, bytes_read, document
        elif (blank := blank + 1) >= _MOST_BLANK:
            bad.add(str(file.path), f"{_MOST_BLANK:,} rows up to row {number:,} hold no text")
            return


# --- text ---


def _text(
    file: InputFile, text_format: TextFormat, bad: BadRows, start: int
) -> Iterator[tuple[int, int, Document]]:
    with file.path.open("rb") as raw:
        content = decompressed(file.read_as, raw).read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        hint = "Split it up, or name what stands between its texts in data.separator."
        bad.add(str(file.path), f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", hint)
        return
    text = decode(content, str(file.path), bad)
    parts = [text or ""]
    if text_format is PROSE and text and len(text) > 4 * _PART_CHARS:
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


def _separator(file: InputFile, head: bytes) -> bytes | None:
    """Return what stands between the texts of a file: as given, or as its beginning shows."""
    if file.separator is not None:
        return file.separator.encode()
    is_txt = without_compression(file.read_as).endswith(".txt")
    return SEPARATOR if is_txt and _is_separated(head) else None


def _is_separated(head: bytes) -> bool:
    """Whether the separator stands at the end, or alone at the beginning, of a line."""
    return SEPARATOR + b"\n" in head.replace(b"\r", b"") or b"\n" + SEPARATOR in head


def _separated(
    file: InputFile, separator: bytes, bad: BadRows, start: int
) -> Iterator[tuple[int, int, str | None]]:
    """Read the texts between separators; one is held in memory at a time."""
    number, rest, size = 0, b"", file.path.stat().st_size
    with file.path.open("rb") as raw:
        stream = decompressed(file.read_as, raw)
        while True:
            piece = stream.read(_HEAD)
            *texts, rest = (rest + piece).split(separator)
            if not piece:
                texts, rest = [*texts, rest], b""
            place = raw.tell() - (len(rest) if stream is raw else 0)
            for text in texts:
                number += 1
                if number > start:
                    where = f"{file.path}, text {number}"
                    yield number, min(place, size), decode(text.strip(b"\r\n"), where, bad)
            if not piece:
                return
            if len(rest) > MAX_DOCUMENT_BYTES:
                bad.add(f"{file.path}, text {number + 1}", "it is above 256 MB", "Split it up.")
                rest = b""


# --- rows of every format ---


def _texts(
    file: InputFile, rows: Iterator[tuple[int, int, Any]], column: TextColumn, bad: BadRows
) -> Iterator[tuple[int, int, str | None]]:
    for number, size, row in rows:
        yield number, size, column.text_of(row, f"{file.path}, row {number}", bad)


def _is_array(file: InputFile) -> bool:
    with file.path.open("rb") as raw:
        head = decompressed(file.read_as, raw).read(64)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _array_rows(
    file: InputFile, bad: BadRows, start: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    with file.path.open("rb") as raw:
        content = decompressed(file.read_as, raw).read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        bad.add(str(file.path), "its array is above 256 MB", "Write one row a line.")
        return
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        bad.add(str(file.path), f"it is not JSON: {first_line(error)}")
        return
    size = file.path.stat().st_size
    for number, row in enumerate(rows, 1):
        if number > start and isinstance(row, dict):
            yield number, size * number // len(rows), row
        elif number > start:
            bad.add(f"{file.path}, row {number}", "it is not a JSON object")


# --- rows of JSON ---


def _json_rows(
    file: InputFile, column: TextColumn, bad: BadRows, start: int
) -> Iterator[tuple[int, int, str | None]]:
    with file.path.open("rb") as raw:
        for number, line in enumerate(_lines(decompressed(file.read_as, raw)), start=1):
            if number <= start:
                continue
            yield (
                number,
                raw.tell(),
                _text_of_line(line, column, f"{file.path}, line {number}", bad),
            )


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for one that is too long to be held in memory."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) <= MAX_DOCUMENT_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


def _text_of_line(line: bytes | None, column: TextColumn, where: str, bad: BadRows) -> str | None:
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
    return column.text_of(row, where, bad)
