"""Read the rows of a parquet file a few at a time; a page is held whole, no row group is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune.data.bad_rows import BadRows
from inheritune.data.text_column import TextColumn, render_hint
from inheritune.errors import MissingExtraError, escape, first_line

_ROWS_AT_A_TIME = 16
_MAX_COLUMN_BYTES = 2 << 30  # of one row group, decompressed
_CAST = "Its writer did not mark it as text: cast it to pyarrow.string(), and write the file again."
_COLUMN = "Name the text column in data.text_column; a.b is field b within column a."


def parquet_rows(
    path: Path, column: TextColumn, bad: BadRows, start: int = 0
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read the text column of a parquet file, row by row.

    Page checksums are compared where the file has them; where it has none, a flipped byte in the
    text is not noticed.

    Args:
        column: Holds strings, or messages that are rendered.
        bad: Counts the rows that are not UTF-8, and the file if it cannot be read.
        start: Rows to skip; row groups that consist of them are not read.

    Yields:
        The row's number, from 1; the approximate number of bytes of the file read with it; and the
        row, with no other field.

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


def _is_readable(file: Any, path: Path, column: TextColumn, bad: BadRows) -> bool:
    import pyarrow.types as types

    schema = file.schema_arrow
    names = ", ".join(escape(name, 40) for name in schema.names) or "none"
    kind = _type_of(schema, column.name)
    if kind is None or not (_is_text(kind) if column.render is None else _is_messages(kind)):
        wanted = "text" if column.render is None else "messages"
        what = f"column {column.name!r} holds {escape(kind, 80)}, not {wanted}; columns: {names}"
        if kind is None:
            what = f"it has no column {column.name!r}; its columns are {names}"
        chats = [name for name in schema.names if _is_messages(schema.field(name).type)]
        hint = _CAST if kind is not None and types.is_binary(kind) else _COLUMN
        bad.add(str(path), what, render_hint(chats[0]) if chats else hint)
        return False
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        chunks = (group.column(i) for i in range(group.num_columns))
        of_column = [c for c in chunks if f"{c.path_in_schema}.".startswith(f"{column.name}.")]
        size = sum(c.total_uncompressed_size for c in of_column)
        if size > _MAX_COLUMN_BYTES:
            what = f"row group {index} holds {size:,} bytes of {column.name!r}, above 2 GiB"
            bad.add(str(path), what, "Write it again with smaller row groups.")
            return False
    return True


def _type_of(schema: Any, column: str) -> Any:
    """Return the type of a column, or of a field within one; None if there is none."""
    import pyarrow.types as types

    if column in schema.names:
        return schema.field(column).type
    first, *fields = column.split(".")
    kind: Any = schema.field(first).type if first in schema.names else None
    for name in fields:
        index = kind.get_field_index(name) if kind is not None and types.is_struct(kind) else -1
        kind = kind.field(index).type if index >= 0 else None
    return kind


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(
        types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    )


def _is_messages(kind: Any) -> bool:
    """Whether a type is a list of structs, or a struct of lists, with the fields of messages."""
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind)
    message = kind.value_type if is_list else kind
    names = [field.name for field in message] if types.is_struct(message) else []
    return "role" in names or "from" in names


def _rows(
    file: Any, path: Path, column: TextColumn, bad: BadRows, start: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    before = 0
    for index in range(file.num_row_groups):
        after = before + file.metadata.row_group(index).num_rows
        if after > start:
            number = before
            batches = file.iter_batches(
                batch_size=_ROWS_AT_A_TIME,
                row_groups=[index],
                columns=[column.name],
                use_threads=False,
            )
            for batch in batches:
                for value in batch.column(0):
                    number += 1
                    if number <= start:
                        continue
                    try:
                        yield number, {batch.schema.names[0]: value.as_py()}
                    except UnicodeDecodeError as error:
                        bad.add(f"{path}, row {number}", f"byte {error.start} is not UTF-8")
        before = after
