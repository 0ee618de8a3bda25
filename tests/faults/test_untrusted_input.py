"""Inject damaged, endless and waiting files where a user names one: each is refused, or counted."""

import bz2
import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inheritune.data.bad_rows import BadRows
from inheritune.data.input_files import InputFile
from inheritune.data.text_files import read_documents
from inheritune.errors import DataError

SPOILT = b"caf\xe9 au lait"  # Latin-1


def write_rows(path: Path, texts: list[bytes], **options: object) -> Path:
    """A parquet file whose text column holds these bytes, whatever they are."""
    buffers = pa.array(texts, type=pa.binary()).buffers()
    column = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    pq.write_table(pa.table({"text": column}), path, **options)
    return path


def texts_of(path: Path, bad: BadRows, start: int = 0) -> list[str]:
    file = InputFile(path.name, path)
    return [document.text for _, _, document in read_documents(file, "text", bad, start)]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "jsonl.gz": gzip.compress,
    "jsonl.bz2": bz2.compress,
    "jsonl.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("options", [{"use_dictionary": True}, {"use_dictionary": False}])
@pytest.mark.fault("C25")
def test_a_parquet_row_that_is_not_utf8_is_one_bad_row(
    options: dict[str, bool], tmp_path: Path
) -> None:
    rows = [f"story {i}".encode() for i in range(40)]
    rows[7] = rows[29] = SPOILT
    path = write_rows(tmp_path / "a.parquet", rows, **options)
    bad = BadRows(2)
    good = [row.decode() for row in rows if row != SPOILT]
    assert texts_of(path, bad) == good and bad.seen == 2
    assert texts_of(path, BadRows(2), start=8) == good[7:]
    with pytest.raises(DataError, match=r"a\.parquet, row 8: byte 3 is not UTF-8"):
        texts_of(path, BadRows(0))


@pytest.mark.parametrize(
    "ending", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "txt"]
)
@pytest.mark.fault("C25")
def test_a_damaged_file_of_any_format_is_counted_or_refused_with_3(
    ending: str, tmp_path: Path
) -> None:
    draw = random.Random(0)
    path = tmp_path / f"a.{ending}"
    rows = [f"a story of {i} wörds".encode() * 5 for i in range(60)]
    if ending == "parquet":
        write_rows(path, rows, row_group_size=20)
    else:
        text = b"".join(b'{"text": "%s"}\n' % row for row in rows)
        path.write_bytes(COMPRESS.get(ending, bytes)(text))
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        texts_of(path, BadRows(1000))
        try:
            texts_of(path, BadRows(0))
        except DataError as error:
            assert error.exit_code == 3


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
@pytest.mark.fault("C26")
def test_rows_without_text_and_without_an_end_are_given_up(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.data.text_files._MOST_BLANK", 1000)
    path = tmp_path / f"a.{ending}"

    def write(*rows: int) -> None:
        """A row of text, then as many without, for each number."""
        texts = [text for count in rows for text in ["text", *[None] * count]]
        if ending == "parquet":
            pq.write_table(pa.table({"text": pa.array(texts, type=pa.string())}), path)
        else:
            lines = ["" if text is None else '{"text": "text"}' for text in texts]
            path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))

    write(999, 999)
    assert texts_of(path, BadRows(0)) == ["text"] * 2
    write(999, 100_000)
    with pytest.raises(DataError, match=r"1,000 rows up to row 2,001 hold no text"):
        texts_of(path, BadRows(0))
    assert texts_of(path, BadRows(1)) == ["text"] * 2
