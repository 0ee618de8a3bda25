"""Read the rows of a parquet file a few at a time; no row group is ever held whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune.data.bad_rows import BadRows
from inheritune.errors import MissingExtraError, escape, first_line

_ROWS_AT_A_TIME = 16
_MAX_COLUMN_BYTES = 2 << 30  # of one row group, decompressed
_COLUMN = "Name the text column in data.text_column."


def parquet_rows(
    path: Path, column: str, bad: BadRows, start: int = 0
) -> Iterator[tuple[int, int, dict[str, str | None]]]:
    """Read the text column of a parquet file, row by row.

    Page checksums are compared where the file has them; where it has none, a flipped byte in the
    text is not noticed.

    Args:
        column: Name of a column of strings.
        bad: Counts the rows that are not UTF-8, and the file if it cannot be read.
        start: Rows to skip; row groups that consist of them are not read.

    Yields:
        The row's number, from 1; the approximate number of bytes of the file read with it; and
        ``{column: text or None}``.

    Raises:
        DataError: There are too many bad rows.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow(str(path))
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            if not _is_readable(file, path, column, bad):
                return
            size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
            for number, row in _rows(file, path, column, bad, start):
                yield number, size * number // rows, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of names
        # What pyarrow raises for broken pages is an OSError without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        bad.add(str(path), f"pyarrow says: {first_line(error).rstrip('.')}")


def import_pyarrow(file: str) -> Any:
    """Import pyarrow; say which file needs it where it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            f"{file} needs the package pyarrow.", 'Install it: pip install "inheritune[data]"'
        ) from error
    return pyarrow


def _is_readable(file: Any, path: Path, column: str, bad: BadRows) -> bool:
    import pyarrow.types as types

    schema = file.schema_arrow
    names = ", ".join(escape(name, 40) for name in schema.names) or "none"
    if column not in schema.names:
        bad.add(str(path), f"it has no column {column!r}; its columns are {names}", _COLUMN)
        return False
    kind = schema.field(column).type
    value = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    if not is_text:
        what = f"column {column!r} holds {kind}, not text; columns: {names}"
        bad.add(str(path), what, _COLUMN)
        return False
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        chunks = (group.column(i) for i in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)
        if size > _MAX_COLUMN_BYTES:
            what = f"row group {index} holds {size:,} bytes of {column!r}, above 2 GiB"
            bad.add(str(path), what, "Write it again with smaller row groups.")
            return False
    return True


def _rows(
    file: Any, path: Path, column: str, bad: BadRows, start: int
) -> Iterator[tuple[int, dict[str, str | None]]]:
    before = 0
    for index in range(file.num_row_groups):
        after = before + file.metadata.row_group(index).num_rows
        if after > start:
            number = before
            for batch in file.iter_batches(
                batch_size=_ROWS_AT_A_TIME, row_groups=[index], columns=[column], use_threads=False
            ):
                for value in batch.column(0):
                    number += 1
                    if number <= start:
                        continue
                    try:
                        yield number, {column: value.as_py()}
                    except UnicodeDecodeError as error:
                        bad.add(f"{path}, row {number}", f"byte {error.start} is not UTF-8")
        before = after
