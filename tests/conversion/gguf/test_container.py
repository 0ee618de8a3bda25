import functools
import random
import struct

import pytest
from fuzzing import damaged, fuzz
from gguf_files import save_model, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from inheritune.conversion.gguf.config import architecture_of, rebuild_config
from inheritune.conversion.gguf.container import _TYPES, read_container
from inheritune.conversion.gguf.tensors import dequantise, pieces_of, small_tensor, values_of
from inheritune.errors import InherituneError, SourceError

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound")
    save_model("llama", "BF16", directory / "model")
    return write_gguf(directory / "model", "llama", "Q8_0", directory / "m.gguf")


def test_the_header_is_what_the_library_reads(sound):
    container, reader = read_container(sound), gguf.GGUFReader(sound)
    own = dict(container.metadata)
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert own == theirs
    for tensor in reader.tensors:
        entry = container.tensors[tensor.name]
        assert (entry.type, entry.offset, entry.size) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert list(entry.shape) == [int(n) for n in reversed(tensor.shape)]


def test_sizes_of_blocks_are_those_of_the_library():
    for number, (name, values, size) in _TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (values, size))


@pytest.mark.parametrize("kind", [name for name, *_ in _TYPES.values()])
def test_every_type_that_is_read_is_dequantised_to_the_library_s_values(kind):
    import numpy as np

    number = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.frombuffer(random.Random(1).randbytes(3 * 2 * size), np.uint8).reshape(3, -1)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, number)
    assert np.array_equal(dequantise(raw, kind), expected, equal_nan=True)
    assert expected.shape == (3, 2 * values)


def change(path, tmp_path, offset, data):
    copy = tmp_path / "changed.gguf"
    content = path.read_bytes()
    copy.write_bytes(content[:offset] + data + content[offset + len(data) :])
    return copy


@pytest.mark.parametrize(
    ("offset", "data", "match"),
    [
        (0, b"GGML", "no GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**40), "1,099,511,627,776 tensors"),
        (16, struct.pack("<Q", 2**60), "keys"),
        (24, struct.pack("<Q", 2**62), "has a name of"),
        (24, struct.pack("<Q", 0), "a name of 0 bytes"),
    ],
)
def test_a_broken_header_is_refused_with_its_value(sound, tmp_path, offset, data, match):
    with pytest.raises(SourceError, match=match):
        read_container(change(sound, tmp_path, offset, data))


def test_a_file_that_was_cut_off_is_refused(sound, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(sound.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cut off"):
        read_container(short)


def written(tmp_path, keys=(), tensors=()):
    """A file of raw keys and raw tensor entries, with 4,096 zeros as data."""
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    content += b"".join(keys) + b"".join(tensors)
    path = tmp_path / "raw.gguf"
    path.write_bytes(content + bytes(-len(content) % 32 + 4096))
    return path


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name, offset=0, shape=(32,), kind=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("keys", "tensors", "match"),
    [
        ([text(b"a") + struct.pack("<IB", 7, 1)] * 2, [], "key a twice"),
        ([text(b"a") + struct.pack("<I", 99)], [], "unknown type 99"),
        ([text(b"a") + struct.pack("<IIQ", 9, 0, 2**60)], [], "1,152,921,504,606,846,976 values"),
        ([text(b"a") + struct.pack("<IIQ", 9, 9, 1)], [], "1 values of type 9"),
        ([text(b"a") + struct.pack("<IIQ", 9, 8, 2**50)], [], "values of type 8"),
        ([text(b"a") + struct.pack("<IQ", 8, 2**50)], [], "more than its header has"),
        ([text(b"general.alignment") + struct.pack("<II", 4, 3)], [], "alignment 3"),
        ([text(b"\xff") + struct.pack("<IB", 7, 1)], [], "not UTF-8"),
        ([], [tensor(b"a"), tensor(b"a", 128)], "tensor a twice"),
        ([], [tensor(b"a"), tensor(b"b", 64)], "b at byte"),
        ([], [tensor(b"a"), tensor(b"b", 256)], "b at byte"),
        ([], [tensor(b"a", shape=(2**40, 2**40))], "the shape"),
        ([], [tensor(b"a", shape=(0,))], "the shape"),
        ([], [tensor(b"a", shape=(1,) * 5)], "5 dimensions"),
        ([], [tensor(b"a", shape=(33,), kind=2)], "Q4_0 the shape"),
        ([], [tensor(b"a", kind=4)], "type 4, which is not read"),
        ([], [tensor(b"a", shape=(2**30,))], "cut off"),
    ],
)
def test_impossible_keys_and_tensors_are_refused(tmp_path, keys, tensors, match):
    with pytest.raises(SourceError, match=match):
        read_container(written(tmp_path, keys, tensors))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Header and data of a file of a few kilobytes."""
    directory = tmp_path_factory.mktemp("small")
    save_model("gpt2", "F32", directory / "model")
    return write_gguf(directory / "model", "gpt2", "F32", directory / "m.gguf").read_bytes()


@fuzz(60)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(small, tmp_path, data):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data.draw(damaged(small[:4000])) + small[4000:])
    try:
        container = read_container(path)
        architecture = architecture_of(container)
        factors = functools.partial(small_tensor, container)
        rebuild_config(container, architecture, factors, has_own_config=data.draw(st.booleans()))
        for piece in pieces_of(container, architecture, 4, 4):
            for _ in values_of(container, piece):
                pass
    except InherituneError as error:
        assert 1 <= len(str(error).splitlines()) <= 3
