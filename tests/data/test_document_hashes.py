import numpy as np
import pytest

from inheritune.data import overlap as document_hashes
from inheritune.data.overlap import DocumentHashes


@pytest.mark.parametrize(("held", "counted"), [(1 << 20, 1 << 23), (7, 1 << 23), (10, 16)])
def test_hashes_and_repeats_are_those_of_a_list(tmp_path, monkeypatch, held, counted):
    monkeypatch.setattr(document_hashes, "_BUFFERED", held)
    monkeypatch.setattr(document_hashes, "_COMPARED", counted)
    values = np.random.default_rng(0).integers(0, 2**64, 60, dtype=np.uint64).tolist()
    values += values[:15]
    hashes = DocumentHashes(tmp_path / "hashes")
    for value in values:
        hashes.add(value)
    assert np.concatenate(list(hashes.chunks())).tolist() == values
    assert hashes.repeated_share() == 1 - 60 / 75
    assert hashes.flush() == hashes.stored() == 75
    hashes.cut(60)
    assert hashes.repeated_share() == 0.0


def test_no_documents_have_no_repeats(tmp_path):
    hashes = DocumentHashes(tmp_path / "hashes")
    assert (hashes.repeated_share(), hashes.stored(), list(hashes.chunks())) == (0.0, 0, [])
