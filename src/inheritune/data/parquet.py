"""Rows of a parquet file, a few at a time: no row group is ever held whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune.data.bad_rows import BadRows
from inheritune.errors import MissingExtraError, first_line

__all__ = ["parquet_rows"]

_ROWS_AT_A_TIME = 16
_MAX_COLUMN_BYTES = 2 << 30  # of one row group, decompressed
_COLUMN = "Name the text column in data.text_column."


def parquet_rows(
    path: Path, column: str, bad: BadRows, start: int = 0
) -> Iterator[tuple[int, int, dict[str, str | None]]]:
    """The text column of a parquet file, row by row.

    Page checksums are compared where the file has them; where it has none, a flipped byte in the
    text is not noticed.

    Args:
        path: The file.
        column: Its column of strings.
        bad: Told of a file that cannot be read.
        start: Rows to leave out; whole row groups among them are not even read.

    Yields:
        The row's number, from 1, about how many bytes of the file were read with it, and
        ``{column: text or None}``.

    Raises:
        DataError: There are too many bad rows.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs the package pyarrow.", 'Install it: pip install "inheritune[data]"'
        ) from error
    try:
        with ParquetFile(path, page_checksum_verification=True) as opened:
            if not _is_readable(opened, path, column, bad):
                return
            size, rows = path.stat().st_size, max(1, opened.metadata.num_rows)
            for number, row in _rows(opened, column, start):
                yield number, size * number // rows, row
    except pyarrow.ArrowException as error:
        bad.add(str(path), f"pyarrow says: {first_line(error).rstrip('.')}")
    except OSError as error:  # what pyarrow raises for broken pages has no error number
        if error.errno is not None:
            raise
        bad.add(str(path), f"pyarrow says: {first_line(error).rstrip('.')}")


def _is_readable(opened: Any, path: Path, column: str, bad: BadRows) -> bool:
    import pyarrow.types as types

    schema = opened.schema_arrow
    names = ", ".join(schema.names) or "none"
    if column not in schema.names:
        bad.add(str(path), f"it has no column {column!r}; its columns are {names}", _COLUMN)
        return False
    kind = schema.field(column).type
    value = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(value) or types.is_large_string(value)):
        what = f"column {column!r} holds {kind}, not text; columns: {names}"
        bad.add(str(path), what, _COLUMN)
        return False
    for index in range(opened.num_row_groups):
        group = opened.metadata.row_group(index)
        columns = (group.column(i) for i in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)
        if size > _MAX_COLUMN_BYTES:
            what = f"row group {index} holds {size:,} bytes of {column!r}, above 2 GiB"
            bad.add(str(path), what, "Write it again with smaller row groups.")
            return False
    return True


def _rows(opened: Any, column: str, start: int) -> Iterator[tuple[int, dict[str, str | None]]]:
    before = 0
    for index in range(opened.num_row_groups):
        after = before + opened.metadata.row_group(index).num_rows
        if after > start:
            number = before
            for batch in opened.iter_batches(
                batch_size=_ROWS_AT_A_TIME, row_groups=[index], columns=[column], use_threads=False
            ):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if number > start:
                        yield number, {column: text}
        before = after
