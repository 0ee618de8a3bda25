import numpy as np
import pytest

from inheritune.data import overlap
from inheritune.data.overlap import duplicate_share, ngram_share
from inheritune.data.shards import ShardWriter
from inheritune.data.tokens import TokenStream

EOS = 0


def stream(directory, name, *pieces, shard_ids=64):
    writer = ShardWriter(directory, name, 70_000, shard_ids)
    for piece in pieces:
        writer.add(np.array([*piece, EOS]))
    return TokenStream(directory, writer.close(), 70_000)


def test_shared_ngrams_are_counted_as_by_hand(tmp_path):
    # The first held-out document has 8 windows of 13; the training text holds its ids 3..17,
    # that is 3 of them. The second has 1 window, which occurs nowhere; the third is too short.
    val = stream(tmp_path, "val", range(1, 21), range(500, 513), [1, 2, 3])
    train = stream(tmp_path, "train", range(100, 140), [7, *range(3, 18), 9])
    measured = ngram_share(val, train, EOS)
    assert measured["val_ngrams"] == 9
    assert measured["share"] == 3 / 9


def test_an_ngram_does_not_span_two_documents(tmp_path):
    val = stream(tmp_path, "val", range(1, 8), range(8, 15))
    train = stream(tmp_path, "train", range(1, 8), range(8, 15))
    measured = ngram_share(val, train, EOS)
    assert (measured["val_ngrams"], measured["share"]) == (0, None)


def test_share_is_one_for_the_same_ids_and_zero_for_reversed_ones(tmp_path):
    ids = np.random.default_rng(0).integers(1, 70_000, 500)
    val = stream(tmp_path, "val", ids)
    same = stream(tmp_path, "train", ids[::-1], ids)
    assert ngram_share(val, same, EOS)["share"] == 1.0
    other = stream(tmp_path, "train", ids[::-1])
    assert ngram_share(val, other, EOS)["share"] == 0.0


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
def test_the_size_of_chunks_changes_nothing(tmp_path, monkeypatch, chunk):
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 3, 300)
    val = stream(tmp_path, "val", ids[:150], ids[100:200])
    train = stream(tmp_path, "train", rng.integers(1, 3, 200), ids[120:180])
    whole = ngram_share(val, train, EOS)
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    assert ngram_share(val, train, EOS) == whole
    expected = by_hand(val.ids(0, val.num_ids).tolist(), train.ids(0, train.num_ids).tolist())
    assert whole["share"] == expected


def by_hand(val, train):
    seen = {tuple(train[i : i + 13]) for i in range(len(train) - 12)}
    windows = [tuple(val[i : i + 13]) for i in range(len(val) - 12)]
    windows = [window for window in windows if EOS not in window]
    return sum(window in seen for window in windows) / len(windows)


def test_a_large_validation_set_is_sampled_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "_MAX_VAL_NGRAMS", 100)
    ids = np.random.default_rng(2).integers(1, 70_000, 1000)
    val = stream(tmp_path, "val", ids)
    measured = ngram_share(val, stream(tmp_path, "train", ids[:500]), EOS)
    assert 80 <= measured["val_ngrams"] <= 100
    assert measured["share"] == pytest.approx(0.5, abs=0.03)


def test_duplicate_documents_are_a_share_of_the_held_out_ones():
    val = np.array([1, 2, 3, 3], dtype=np.uint64)
    train = np.array([3, 5, 5], dtype=np.uint64)
    assert duplicate_share(val, [train]) == duplicate_share(val, [train[:1], train[1:]]) == 0.5
    assert duplicate_share(val[:0], [train]) == duplicate_share(val, []) == 0.0
