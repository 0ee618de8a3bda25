import json

import hypothesis.strategies as st
import numpy as np
import pytest
from fuzzing import fuzz
from hypothesis import given, settings

from inheritune.data.prepare_text import prepare_text
from inheritune.data.shards import ShardWriter
from inheritune.data.tokens import TokenStream, open_tokens, verify_tokens
from inheritune.errors import DataError
from inheritune.recipe.data import Data


def stream_of(directory, ids, shard_ids, rows=70_000):
    writer = ShardWriter(directory, "train", rows, shard_ids)
    writer.add(np.asarray(ids, dtype=np.int64))
    return TokenStream(directory, writer.close(), rows)


@pytest.fixture(scope="module")
def prepared(tokenizer, stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for number, story in enumerate(stories):
        (folder / f"{number}.txt").write_text(story)
    data = Data(source=str(folder), val_fraction=0.2)
    return prepare_text(data, tokenizer, 300, 16, folder / "tokens", shard_ids=5000)


@settings(max_examples=15, deadline=None)
@given(count=st.integers(10, 120), shard_ids=st.integers(4, 64), seq_len=st.integers(1, 9))
def test_samples_are_slices_of_the_stream_wherever_shards_end(
    tmp_path_factory, count, shard_ids, seq_len
):
    ids = np.random.default_rng(count).integers(0, 70_000, count)
    stream = stream_of(tmp_path_factory.mktemp("stream"), ids, shard_ids)
    number = stream.num_samples(seq_len)
    assert number == (count - 1) // seq_len
    order = np.random.default_rng(0).permutation(number).astype(np.uint64)
    samples = stream.samples(order, seq_len)
    assert samples.dtype == np.int64 and samples.shape == (number, seq_len + 1)
    for row, sample in zip(samples, order.astype(int), strict=True):
        assert np.array_equal(row, ids[sample * seq_len : sample * seq_len + seq_len + 1])


def test_every_token_but_the_first_is_predicted_once(tmp_path):
    stream = stream_of(tmp_path, np.arange(41), shard_ids=7)
    targets = stream.samples(np.arange(stream.num_samples(4)), 4)[:, 1:]
    assert targets.ravel().tolist() == list(range(1, 41))


def test_a_sample_beyond_the_end_is_refused(tmp_path):
    stream = stream_of(tmp_path, np.arange(41), shard_ids=7)
    with pytest.raises(IndexError):
        stream.samples(np.array([10]), 4)


def test_a_stream_too_short_for_one_sample_has_none(tmp_path):
    assert stream_of(tmp_path, [1], shard_ids=7).num_samples(8) == 0


def test_opening_and_verifying_agree(prepared):
    assert open_tokens(prepared.path).fingerprint == prepared.fingerprint
    assert verify_tokens(prepared.path).summary() == prepared.summary()


def test_no_tokens_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match="there are no prepared tokens in"):
        open_tokens(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@fuzz(150)
@given(data=st.data())
def test_a_manifest_with_any_value_changed_is_refused_or_harmless(prepared, tmp_path, data):
    manifest = json.loads((prepared.path / "manifest.json").read_text())
    part = manifest
    if data.draw(st.booleans()):
        part = manifest["files"][data.draw(st.integers(0, len(manifest["files"]) - 1))]
    key = data.draw(st.sampled_from(sorted(part)))
    value = data.draw(json_values)
    part[key] = value
    target = tmp_path / "manifest.json"
    target.write_text(json.dumps(manifest))
    for file in prepared.path.glob("*.bin"):
        if not (tmp_path / file.name).exists():
            (tmp_path / file.name).symlink_to(file)
    try:
        opened = open_tokens(tmp_path)
    except DataError as error:
        assert str(tmp_path) in str(error)
    else:
        assert np.array_equal(opened.val.ids(0, 20), prepared.val.ids(0, 20))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 200_000, b'{"format": 2}'])
def test_a_broken_manifest_is_refused(tmp_path, body):
    (tmp_path / "manifest.json").write_bytes(body)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_tokens(tmp_path)


def test_a_manifest_cannot_lead_out_of_its_directory(prepared, tmp_path):
    manifest = json.loads((prepared.path / "manifest.json").read_text())
    manifest["files"][0]["name"] = "../train-00000.bin"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is no shard"):
        open_tokens(tmp_path)
