import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_documents import documents

from inheritune.data import parquet
from inheritune.data.bad_rows import BadRows
from inheritune.data.document import Document
from inheritune.data.parquet import parquet_rows
from inheritune.data.text_column import TextColumn
from inheritune.errors import DataError

TEXTS = [f"text {i}" for i in range(100)]


def write(path, texts, name="text", kind=None, **options):
    table = pa.table({"id": list(range(len(texts))), name: pa.array(texts, type=kind)})
    pq.write_table(table, path, **options)
    return path


def test_rows_come_in_order_and_are_named_by_file_and_row(tmp_path):
    write(tmp_path / "a.parquet", ["one", None, " ", "two"], row_group_size=2)
    write(tmp_path / "b.parquet", ["three"])
    assert list(documents(str(tmp_path))) == [
        Document("a.parquet:1", "one"),
        Document("a.parquet:4", "two"),
        Document("b.parquet:1", "three"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"use_dictionary": False}])
@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 99, 100])
def test_reading_from_a_row_on_gives_the_rest(tmp_path, kind, options, start):
    path = write(tmp_path / "a.parquet", TEXTS, kind=kind, **options)
    rows = list(parquet_rows(path, TextColumn("text"), BadRows(0), start))
    assert [(n, row["text"]) for n, _, row in rows] == list(enumerate(TEXTS, 1))[start:]
    assert not rows or rows[-1][1] == path.stat().st_size


def test_row_groups_before_the_start_are_not_read(tmp_path):
    path = write(tmp_path / "a.parquet", TEXTS, row_group_size=50, compression="none")
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.dictionary_page_offset : column.dictionary_page_offset + 20] = bytes(20)
    path.write_bytes(content)
    assert len(list(parquet_rows(path, TextColumn("text"), BadRows(0), 50))) == 50
    with pytest.raises(DataError, match="pyarrow says"):
        list(parquet_rows(path, TextColumn("text"), BadRows(0)))


def test_parquet_column_can_be_named(tmp_path):
    write(tmp_path / "a.parquet", ["hello"], name="body")
    assert [d.text for d in documents(str(tmp_path), "body")] == ["hello"]


def test_a_column_above_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", TEXTS, row_group_size=50)
    monkeypatch.setattr(parquet, "_MAX_COLUMN_BYTES", 100)
    with pytest.raises(DataError, match=r"row group 0 holds .* Write it again with smaller"):
        list(parquet_rows(path, TextColumn("text"), BadRows(0)))
