"""Damaged files of text and of tokens are read, counted or refused: nothing else happens."""

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import damaged, fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from inheritune.data.bad_rows import BadRows
from inheritune.data.flat_files import open_flat_file
from inheritune.data.input_files import InputFile
from inheritune.data.shards import ShardEntry, ShardWriter, check_shard, map_shard
from inheritune.data.text_column import TextColumn
from inheritune.data.text_files import read_documents
from inheritune.errors import DataError, InherituneError

ROWS = "".join(json.dumps({"text": f"row {i} ünï " + "x" * i}) + "\n" for i in range(40)).encode()
COMPRESSED = {
    "rows.jsonl": ROWS,
    "rows.jsonl.gz": gzip.compress(ROWS, mtime=0),
    "rows.jsonl.bz2": bz2.compress(ROWS),
    "rows.jsonl.zst": pyarrow.compress(ROWS, "zstd", asbytes=True),
    "rows.jsonl.lz4": pyarrow.compress(ROWS, "lz4", asbytes=True),
    "book.txt": ROWS,
}
EMBEDDING_ROWS = 300
IDS = np.arange(200) % EMBEDDING_ROWS


def parquet_bytes(**options: object) -> bytes:
    table = pyarrow.table({"id": list(range(40)), "text": [f"row {i} ünï" for i in range(40)]})
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, out, row_group_size=15, **options)
    return out.getvalue().to_pybytes()


PARQUET = [
    parquet_bytes(),
    parquet_bytes(compression="zstd", use_dictionary=False),
    parquet_bytes(compression="none", write_page_checksum=True),
]


def read(path: Path, content: bytes) -> None:
    """Every row is text, or is counted; a file that counts too many is refused."""
    path.write_bytes(content)
    try:
        file = InputFile(path.name, path)
        for number, _, document in read_documents(file, TextColumn("text"), BadRows(5)):
            assert number >= 1 and isinstance(document.text, str)
            document.text.encode()
    except DataError as error:
        assert path.name in str(error) and len(str(error).splitlines()) <= 3


@pytest.mark.parametrize("name", COMPRESSED)
@fuzz(40)
@given(data=st.data())
def test_any_damage_to_rows_of_text_is_read_counted_or_refused(name, tmp_path, data):
    read(tmp_path / name, data.draw(damaged(COMPRESSED[name])))


@pytest.mark.parametrize("sound", PARQUET, ids=["snappy", "zstd", "checksums"])
@fuzz(80)
@given(data=st.data())
def test_any_damage_to_parquet_is_read_counted_or_refused(sound, tmp_path, data):
    read(tmp_path / "rows.parquet", data.draw(damaged(sound)))


def llm_c(count: int) -> bytes:
    return np.array([20240520, 1, count] + [0] * 253, dtype="<i4").tobytes()


LITGPT = b"LITPKDS" + (1).to_bytes(8, "little") + bytes([8]) + (100).to_bytes(8, "little")
FLAT = {
    "llm-c.bin": llm_c(len(IDS)) + IDS.astype("<u2").tobytes(),
    "litgpt.bin": LITGPT + IDS.astype("<u2").tobytes(),
    "flat.bin": IDS.astype("<u4").tobytes(),
    "datatrove.ds": IDS.astype("<u2").tobytes(),
}
INDEX = np.array([50, 51, 120, 200], dtype="<u8").tobytes()


@pytest.mark.parametrize("name", FLAT)
@fuzz(60)
@given(data=st.data())
def test_any_damage_to_a_file_of_ids_is_read_or_refused(name, tmp_path, data):
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(FLAT[name]) | st.just(FLAT[name])))
    if name.endswith(".ds"):
        (tmp_path / f"{name}.index").write_bytes(data.draw(damaged(INDEX) | st.just(INDEX)))
        metadata = data.draw(damaged(b"gpt2|2\n200") | st.just(b'{"token_size": 2}'))
        (tmp_path / f"{name}.metadata").write_bytes(metadata)
    try:
        file = open_flat_file(path, EMBEDDING_ROWS, data.draw(st.sampled_from([None, 2, 4])))
    except DataError as error:
        assert name in str(error)
        return
    assert len(file.ids) == 0 or file.ids.max() < EMBEDDING_ROWS
    ends = 0
    for begin, end in file.documents(0):
        assert ends <= begin < end <= len(file.ids)
        ends = end


@fuzz(40)
@given(count=st.integers(-(2**31), 2**31 - 1) | st.integers(-300, 300))
@example(-50)
def test_a_header_that_speaks_of_other_ids_than_there_are_is_refused(tmp_path, count):
    (tmp_path / "a.bin").write_bytes(llm_c(count) + IDS.astype("<u2").tobytes())
    if 0 < count <= len(IDS):
        assert np.array_equal(open_flat_file(tmp_path / "a.bin", EMBEDDING_ROWS).ids, IDS[:count])
    else:
        with pytest.raises(DataError, match=r"a\.bin has 200 ids"):
            open_flat_file(tmp_path / "a.bin", EMBEDDING_ROWS)


@fuzz(40)
@given(ends=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 200), max_size=5))
@example([2**64 - 5, 50])  # as a signed number, before the first id
@example([2**63, 2**64 - 1])
def test_an_index_that_does_not_cover_the_ids_in_order_is_refused(tmp_path, ends):
    (tmp_path / "a.ds").write_bytes(IDS.astype("<u2").tobytes())
    (tmp_path / "a.ds.index").write_bytes(np.array([*ends, len(IDS)], dtype="<u8").tobytes())
    if ends == sorted(ends) and all(end <= len(IDS) for end in ends):
        assert open_flat_file(tmp_path / "a.ds", EMBEDDING_ROWS).ends.tolist() == [*ends, 200]
    else:
        with pytest.raises(DataError, match=r"a\.ds\.index does not fit"):
            open_flat_file(tmp_path / "a.ds", EMBEDDING_ROWS)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardEntry]:
    folder = tmp_path_factory.mktemp("shard")
    writer = ShardWriter(folder, "train", EMBEDDING_ROWS)
    writer.add(IDS)
    return folder, writer.close()[0]


@fuzz(100)
@given(data=st.data())
def test_any_damage_to_a_shard_is_refused(shard, tmp_path, data):
    folder, entry = shard
    sound = (folder / entry.name).read_bytes()
    content = data.draw(damaged(sound))
    (tmp_path / entry.name).write_bytes(content)
    try:
        check_shard(tmp_path, entry, EMBEDDING_ROWS)
        ids = map_shard(tmp_path, entry, EMBEDDING_ROWS)
    except InherituneError as error:
        assert entry.name in str(error)
    else:
        assert content == sound and np.array_equal(ids, IDS)
