"""Read the rows of a table, separated by commas or tabs, one at a time."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from inheritune.data.bad_rows import BadRows
from inheritune.data.compression import DAMAGE, decompressed
from inheritune.data.document import MAX_DOCUMENT_BYTES
from inheritune.data.input_files import InputFile
from inheritune.data.text_formats import without_compression
from inheritune.errors import first_line


def table_rows(
    file: InputFile, bad: BadRows, start: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read the rows of a ``.csv`` or ``.tsv`` file, compressed or not.

    A value may be enclosed in quotes, with quotes in it doubled (RFC 4180). Many ``.tsv`` files
    know no such quotes: one is read without if each of its lines is a row as it stands.

    Args:
        bad: Counts rows with too many or too few columns, and the file from its first stray quote.
        start: Rows to skip.

    Yields:
        The row's number, from 1; the bytes of the file read with it; and its fields.

    Raises:
        DataError: There are too many bad rows.
        MissingExtraError: The compression needs a package that is not installed.
    """
    is_tsv = without_compression(file.read_as).endswith(".tsv")
    is_unquoted = is_tsv and _has_stray_quotes(file)
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    with file.path.open("rb") as raw:
        stream = io.TextIOWrapper(decompressed(file.read_as, raw), "utf-8-sig", newline="")
        # strict: a quote that is never closed would otherwise swallow the rows after it
        reader = csv.reader(
            stream,
            delimiter="\t" if is_tsv else ",",
            quoting=csv.QUOTE_NONE if is_unquoted else csv.QUOTE_MINIMAL,
            strict=True,
        )
        line = 1
        try:
            names = next(reader, [])
            line = reader.line_num + 1
            for number, values in enumerate(reader, 1):
                line = reader.line_num + 1
                if number <= start or not values:
                    continue
                if len(values) != len(names):
                    what = f"it has {len(values)} columns, the first row names {len(names)}"
                    bad.add(f"{file.path}, row {number}", what)
                    continue
                yield number, raw.tell(), dict(zip(names, values, strict=True))
        except UnicodeDecodeError as error:
            bad.add(str(file.path), f"it is no table: {first_line(error)}")
        except csv.Error as error:
            bad.add(
                f"{file.path}, line {line}",
                f"the row that begins there is broken: {first_line(error)}",
                "Enclose values with quotes in quotes and double theirs, or write .jsonl.",
            )


def _has_stray_quotes(file: InputFile) -> bool:
    """Whether each line of a file is a row, and one of them has quotes that do not close."""
    has_stray, tabs = False, None
    with file.path.open("rb") as raw, suppress(*DAMAGE):
        stream = decompressed(file.read_as, raw)  # damage is told where the rows end
        while line := stream.readline(MAX_DOCUMENT_BYTES):
            row = line.rstrip(b"\r\n")
            if not row:
                continue
            if tabs is None:
                tabs = row.count(b"\t")
            if tabs == 0 or row.count(b"\t") != tabs:
                return False
            has_stray = has_stray or (b'"' in row and not _is_closed(row))
    return has_stray


def _is_closed(row: bytes) -> bool:
    """Whether the quotes of a row enclose values, as they stand in this line alone."""
    try:
        next(csv.reader([row.decode(errors="replace")], delimiter="\t", strict=True))
    except csv.Error:
        return False
    return True
