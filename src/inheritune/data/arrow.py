"""Read the rows of an Arrow file, mapped from disk, one at a time."""

from collections.abc import Iterator
from typing import Any

from inheritune.data.bad_rows import BadRows
from inheritune.data.input_files import InputFile
from inheritune.data.parquet import import_pyarrow
from inheritune.errors import first_line


def arrow_rows(
    file: InputFile, bad: BadRows, start: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read the rows of an Arrow file or stream, as ``save_to_disk`` of datasets writes it.

    Args:
        bad: Counts the file if it cannot be read.
        start: Rows to skip.

    Yields:
        The row's number, from 1; the bytes of the file read with it; and its fields.

    Raises:
        DataError: There are too many bad rows.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow(str(file.path))
    number = 0
    try:
        with pyarrow.memory_map(str(file.path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
            for batch in batches:
                for index in range(max(0, start - number), batch.num_rows):
                    (row,) = batch.slice(index, 1).to_pylist()
                    yield number + index + 1, source.tell(), row
                number += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        bad.add(str(file.path), f"pyarrow says: {first_line(error).rstrip('.')}")
