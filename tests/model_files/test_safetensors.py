"""The header parser against the library's files, and against everything that is not one."""

import json
import struct

import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inheritune.errors import InherituneError, SourceError
from inheritune.model_files.safetensors import item_bits, read_header
from inheritune.model_files.write import TargetTensor
from inheritune.model_files.write import write_safetensors as write_targets

TENSORS = {
    "model.a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "model.b": torch.arange(4, dtype=torch.int64),
    "ünï": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.ones(0, 5),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "byte": torch.tensor([True, False, True]),
}


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def write_safetensors(out, tensors, metadata):
    targets = [TargetTensor(t.name, t, t.dtype) for t in tensors]
    return [placed for group in write_targets(out, targets, metadata) for placed in group]


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt", "by": "the library"})
    return tmp_path / "model.safetensors"


def test_offsets_agree_with_the_library(file):
    tensors, metadata = read_header(file)
    assert metadata == {"format": "pt", "by": "the library"}
    assert {t.name for t in tensors} == TENSORS.keys()
    data = file.read_bytes()
    for t in tensors:
        wanted = TENSORS[t.name]
        assert t.shape == tuple(wanted.shape)
        assert t.items == wanted.numel()
        assert t.size == wanted.numel() * item_bits(t.dtype) // 8
        raw = wanted.reshape(-1).view(torch.uint8) if wanted.numel() else wanted
        assert data[t.offset : t.offset + t.size] == bytes(raw.tolist() if t.size else [])


def test_the_tensors_come_in_the_order_of_their_bytes(file):
    tensors, _ = read_header(file)
    offsets = [t.offset for t in tensors]
    assert offsets == sorted(offsets)


def test_a_written_file_is_read_back_equal_by_the_library(file, tmp_path):
    tensors, metadata = read_header(file)
    write_safetensors(tmp_path / "copy.safetensors", tensors[1:], metadata)
    held = load_file(tmp_path / "copy.safetensors")
    assert held.keys() == {t.name for t in tensors[1:]}
    assert all(torch.equal(held[n], TENSORS[n]) for n in held)
    length = int.from_bytes((tmp_path / "copy.safetensors").read_bytes()[:8], "little")
    assert length % 8 == 0


def test_tensors_in_any_order_are_aligned_to_their_items(file, tmp_path):
    tensors, _ = read_header(file)
    write_safetensors(tmp_path / "copy.safetensors", tensors[::-1], {})
    written, _ = read_header(tmp_path / "copy.safetensors")
    assert all(t.offset % (item_bits(t.dtype) // 8) == 0 for t in written)
    held = load_file(tmp_path / "copy.safetensors")
    assert all(torch.equal(held[n], TENSORS[n]) for n in TENSORS)


def test_a_file_without_tensors_is_one(tmp_path):
    assert read_header(write(tmp_path / "m", {})) == ([], {})
    assert read_header(write(tmp_path / "m", {"__metadata__": {"a": "b"}})) == ([], {"a": "b"})


@pytest.mark.parametrize("shape, offsets", [((2,), (0, 1)), ((4,), (0, 2)), ((0, 3), (0, 0))])
def test_half_byte_types_are_counted_in_bits(tmp_path, shape, offsets):
    path = write(tmp_path / "m", {"a": entry("F4", shape, offsets)}, b"x" * offsets[1])
    assert read_header(path)[0][0].size == offsets[1]


@pytest.mark.parametrize(
    "header, data",
    [
        (b"[]", b""),
        (b"{", b""),
        (b'{"a":', b""),
        ({"a": []}, b""),
        ({"a": entry() | {"extra": 1}}, b"x" * 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"x" * 8),
        ({"a": entry(dtype="F33")}, b"x" * 8),
        ({"a": entry(dtype=["F32"])}, b"x" * 8),
        ({"a": entry(shape=[-2])}, b"x" * 8),
        ({"a": entry(shape=[True, 2])}, b"x" * 8),
        ({"a": entry(shape=[2.0])}, b"x" * 8),
        ({"a": entry(shape=[3])}, b"x" * 8),
        ({"a": entry(shape=[2**62, 8])}, b"x" * 8),
        ({"a": entry(shape=[2**64])}, b"x" * 8),
        ({"a": entry(shape=[1] * 100)}, b"x" * 4),
        ({"a": entry(offsets=[0, 8, 8])}, b"x" * 8),
        ({"a": entry(offsets=[8, 0])}, b"x" * 8),
        ({"a": entry(offsets=[-8, 0])}, b"x" * 8),
        ({"a": entry()}, b"x" * 7),
        ({"a": entry()}, b"x" * 9),
        ({"a": entry(offsets=[8, 16])}, b"x" * 16),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, b"x" * 12),
        ({"a": entry(), "b": entry(offsets=[16, 24])}, b"x" * 24),
        ({"__metadata__": {"a": 1}}, b""),
        ({"__metadata__": []}, b""),
        (b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}', b"x"),
        (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"x" * 8),
    ],
)
def test_a_header_that_lies_is_refused_with_the_file(tmp_path, header, data):
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(SourceError, match=r"bad\.safetensors"):
        read_header(path)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4"]) | VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | VALUES,
    }
)


@fuzz(100)
@given(header=st.dictionaries(NAMES, ENTRIES | VALUES, max_size=4), data=st.binary(max_size=40))
def test_any_header_is_read_or_refused(tmp_path, header, data):
    path = write(tmp_path / "m", header, data)
    try:
        tensors, _ = read_header(path)
    except InherituneError:
        return
    assert sum(t.size for t in tensors) == len(data)


@fuzz(100)
@given(data=st.data())
def test_any_changed_byte_is_read_or_refused(file, tmp_path, data):
    original = file.read_bytes()
    content = bytearray(original)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), end, 8, 3]))]
    changed = tmp_path / "changed"
    changed.write_bytes(content)
    try:
        tensors, _ = read_header(changed)
    except InherituneError:
        return
    assert all(t.offset + t.size <= len(content) for t in tensors)


@fuzz(100)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    kinds=st.lists(st.sampled_from(["F32", "BF16", "U8", "I64"]), min_size=5, max_size=5),
    keep=st.sets(st.integers(0, 4)),
)
def test_written_files_are_read_back_equal(tmp_path, shapes, kinds, keep):
    header, data = {}, b""
    for i, shape in enumerate(shapes):
        size = int(torch.tensor(shape).prod()) * item_bits(kinds[i]) // 8
        header[f"t{i}"] = entry(kinds[i], shape, (len(data), len(data) + size))
        data += bytes([i + 1]) * size
    tensors, metadata = read_header(write(tmp_path / "in", header, data))
    kept = [t for t in tensors if int(t.name[1:]) in keep]
    out = tmp_path / "out"
    out.unlink(missing_ok=True)
    placed = write_safetensors(out, kept, metadata)
    again, _ = read_header(out)
    assert [(t.name, t.offset, t.size) for t in sorted(placed, key=lambda t: t.name)] == [
        (t.name, t.offset, t.size) for t in sorted(again, key=lambda t: t.name)
    ]
    content = out.read_bytes()
    assert {(t.name, t.dtype, t.shape) for t in again} == {(t.name, t.dtype, t.shape) for t in kept}
    for t in again:
        assert content[t.offset : t.offset + t.size] == bytes([int(t.name[1:]) + 1]) * t.size
