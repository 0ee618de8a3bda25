import bz2
import gzip
import json

import pyarrow
import pytest
from source_documents import documents

from inheritune.data import text_files
from inheritune.data.bad_rows import BadRows
from inheritune.data.input_files import InputFile
from inheritune.data.text_column import TextColumn
from inheritune.data.text_files import read_documents
from inheritune.errors import DataError, MissingExtraError

ROWS = "".join(json.dumps({"text": f"row {i} " + "x" * i}) + "\n" for i in range(300)).encode()


def compressed(content, frames=1, compression="zstd"):
    size = -(-len(content) // frames)
    parts = [content[i : i + size] for i in range(0, len(content), size)]
    if compression == "bz2":
        return b"".join(bz2.compress(part) for part in parts)
    return b"".join(pyarrow.compress(part, compression, asbytes=True) for part in parts)


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("compression", ["zstd", "bz2", "lz4"])
def test_compressed_file_gives_the_rows_of_the_plain_file(tmp_path, frames, compression):
    name = f"rows.jsonl.{compression.replace('zstd', 'zst')}"
    (tmp_path / "plain.jsonl").write_bytes(ROWS)
    (tmp_path / name).write_bytes(compressed(ROWS, frames, compression))
    plain, packed = (
        [d.text for d in documents(str(tmp_path / file))] for file in ("plain.jsonl", name)
    )
    assert plain == packed and len(plain) == 300


@pytest.mark.parametrize("cut", [-1, -20, 5])
def test_a_cut_zst_file_is_one_error_that_names_it(tmp_path, cut):
    (tmp_path / "cut.jsonl.zst").write_bytes(compressed(ROWS, 2)[:cut])
    with pytest.raises(DataError, match=r"cut\.jsonl\.zst: .*(truncated|ended before the end)"):
        list(documents(str(tmp_path)))


def test_file_that_is_not_zst_is_named(tmp_path):
    (tmp_path / "page.jsonl.zst").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"page\.jsonl\.zst: .*zst"):
        list(documents(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.jsonl.zst", "pyarrow"), ("a.parquet", "pyarrow")],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(compressed(ROWS))
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setattr("inheritune.data.compression.zstd", None)
    with pytest.raises(MissingExtraError, match=package) as caught:
        list(documents(str(tmp_path), max_bad_rows=10))
    assert caught.value.hint == 'Install it: pip install "inheritune[data]"'


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "book.txt"])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_reading_from_a_row_on_gives_the_rest(tmp_path, monkeypatch, name, start):
    monkeypatch.setattr(text_files, "_PART_CHARS", 50)
    pack = {".gz": gzip.compress, "zst": compressed}.get(name[-3:], bytes)
    content = ROWS[:4000].rpartition(b"\n")[0]
    (tmp_path / name).write_bytes(pack(content.replace(b"{", b"") if "book" in name else content))
    file = InputFile(name, tmp_path / name)
    whole = list(read_documents(file, TextColumn("text"), BadRows(0)))
    assert len(whole) > 5
    rest = list(read_documents(file, TextColumn("text"), BadRows(0), whole[start][0]))
    assert rest == whole[start + 1 :]
    assert whole[-1][1] == file.path.stat().st_size
    assert [done for _, done, _ in whole] == sorted(done for _, done, _ in whole)
