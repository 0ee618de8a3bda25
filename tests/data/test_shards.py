import struct

import numpy as np
import pytest

from inheritune.data.shards import HEADER_BYTES, ShardWriter, check_shard, id_type, map_shard
from inheritune.errors import DataError


def written(tmp_path, ids, rows, shard_ids=1 << 17):
    writer = ShardWriter(tmp_path, "train", rows, shard_ids)
    writer.add(np.asarray(ids, dtype=np.int64))
    return writer.close()


def test_header_is_the_documented_one(tmp_path):
    (entry,) = written(tmp_path, [5, 6, 299], rows=300)
    content = (tmp_path / "train-00000.bin").read_bytes()
    assert struct.unpack("<8sIIQQ32x", content[:64]) == (b"INHTTOKS", 1, 2, 3, 299)
    assert content[64:] == struct.pack("<3H", 5, 6, 299)
    assert (entry.name, entry.ids, entry.bytes, entry.max_id) == ("train-00000.bin", 3, 70, 299)


def test_an_id_takes_two_bytes_up_to_65536_rows_and_four_above():
    assert [id_type(rows).itemsize for rows in (1, 65_535, 65_536, 65_537, 200_000)] == [
        2, 2, 2, 4, 4,
    ]  # fmt: skip


def test_documents_go_on_in_the_next_shard_and_starts_are_kept(tmp_path):
    writer = ShardWriter(tmp_path, "val", 300, shard_ids=4)
    for document in ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12]):
        writer.add(np.array(document))
    entries = writer.close()
    assert [map_shard(tmp_path, entry, 300).tolist() for entry in entries] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
    ]
    starts = [np.fromfile(tmp_path / f"val-{i:05d}.idx", dtype="<u8").tolist() for i in range(3)]
    assert starts == [[0, 3], [], [2, 3]]
    assert (writer.num_ids, writer.documents) == (12, 4)


@pytest.mark.parametrize("bad", [300, 65_536, 2**32 - 1, -1])
def test_an_id_without_a_row_is_never_written(tmp_path, bad):
    with pytest.raises(DataError, match="300 rows"):
        written(tmp_path, [1, bad], rows=300)
    assert not list(tmp_path.iterdir())


def test_a_shard_of_another_width_is_refused(tmp_path):
    (entry,) = written(tmp_path, [1, 2], rows=300)
    with pytest.raises(DataError, match="2 bytes an id"):
        check_shard(tmp_path, entry, rows=70_000)


def test_a_shard_is_mapped_behind_its_header(tmp_path):
    (entry,) = written(tmp_path, [1, 2], rows=300)
    mapped = map_shard(tmp_path, entry, 300)
    assert isinstance(mapped, np.memmap) and mapped.offset == HEADER_BYTES
