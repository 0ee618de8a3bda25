import json
import struct

import numpy as np
import pytest

from inheritune.data.flat_files import open_flat_file
from inheritune.data.import_tokens import FlatFiles, import_tokens
from inheritune.data.prepare_text import prepare_text
from inheritune.errors import DataError
from inheritune.recipe.data import Data


@pytest.fixture
def streams(text_folder, tokenizer, tmp_path):
    """The same text, prepared here: what an import must come to."""
    data = Data(source=str(text_folder), val_fraction=0.2)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "own")
    return tokens.train.ids(0, tokens.train.num_ids), tokens.val.ids(0, tokens.val.num_ids)


def write(path, ids, dtype="<u2", head=b""):
    path.write_bytes(head + np.asarray(ids).astype(dtype).tobytes())
    return path


def both(streams, tmp_path, suffix="bin", **options):
    return [write(tmp_path / f"{i}.{suffix}", ids, **options) for i, ids in enumerate(streams)]


LITGPT = b"LITPKDS" + (1).to_bytes(8, "little") + bytes([8]) + (100).to_bytes(8, "little")
HEADS = {
    "uint16": ("<u2", b"", "flat"),
    "uint32": ("<u4", b"", "flat"),
    "litgpt": ("<u2", LITGPT, "litgpt"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_ids_come_back_as_they_are(streams, tokenizer, tmp_path, kind):
    dtype, head, name = HEADS[kind]
    train, val = both(streams, tmp_path, dtype=dtype, head=head)
    tokens = import_tokens(FlatFiles([train], [val]), tokenizer, 300, tmp_path / "tokens")
    assert np.array_equal(tokens.train.ids(0, tokens.train.num_ids), streams[0])
    assert np.array_equal(tokens.val.ids(0, tokens.val.num_ids), streams[1])
    assert tokens.manifest["sources"]["formats"] == [name]
    assert tokens.manifest["documents"] == (streams[0] == 0).sum()
    assert tokens.val_bytes == len(tokenizer.decode(streams[1].tolist()).encode())


def test_a_header_of_llm_c_is_left_out(streams, tokenizer, tmp_path):
    head = np.zeros(256, dtype="<i4")
    head[:3] = 20240520, 1, len(streams[0])
    train = write(tmp_path / "train.bin", streams[0], head=head.tobytes())
    opened = open_flat_file(train, 300)
    assert opened.format == "llm.c" and np.array_equal(opened.ids, streams[0])


def test_padding_of_litgpt_is_no_document(streams, tokenizer, tmp_path):
    padded = np.concatenate([streams[0], np.zeros(500, dtype=np.int64)])
    train = write(tmp_path / "train.bin", padded, head=LITGPT)
    val = write(tmp_path / "val.bin", streams[1])
    tokens = import_tokens(FlatFiles([train], [val]), tokenizer, 300, tmp_path / "tokens")
    assert np.array_equal(tokens.train.ids(0, tokens.train.num_ids), streams[0])


@pytest.mark.parametrize("metadata", ["x/tokenizer.json\n99\n0.1 kT", "x|2\n99", None])
def test_documents_of_datatrove_end_where_its_index_says(streams, tokenizer, tmp_path, metadata):
    ends = np.flatnonzero(streams[0] == 0)
    without_eos = np.delete(streams[0], ends)
    train = write(tmp_path / "train.ds", without_eos)
    index = (ends - np.arange(len(ends))).astype("<u8")
    (tmp_path / "train.ds.index").write_bytes(index.tobytes())
    if metadata:
        (tmp_path / "train.ds.metadata").write_text(metadata)
    val = write(tmp_path / "val.ds", streams[1])
    tokens = import_tokens(FlatFiles([train], [val]), tokenizer, 300, tmp_path / "tokens")
    assert np.array_equal(tokens.train.ids(0, tokens.train.num_ids), streams[0])


def test_without_a_validation_file_documents_are_held_out_by_their_ids(
    streams, tokenizer, tmp_path
):
    (train, _) = both(streams, tmp_path)
    files = FlatFiles([train], [], val_fraction=0.2)
    tokens = import_tokens(files, tokenizer, 300, tmp_path / "tokens")
    found = tokens.manifest["documents"], tokens.manifest["val_documents"]
    assert sum(found) == (streams[0] == 0).sum() and 2 < found[1] < found[0]
    assert tokens.train.num_ids + tokens.val.num_ids == len(streams[0])
    with pytest.raises(DataError, match=r"none was held out.*--val-from-bin"):
        import_tokens(FlatFiles([train], [], 0.0), tokenizer, 300, tmp_path / "none")


def test_several_files_are_one_stream(streams, tokenizer, tmp_path):
    train, val = both(streams, tmp_path)
    files = FlatFiles([train, val], [val])
    tokens = import_tokens(files, tokenizer, 300, tmp_path / "tokens", shard_ids=1000)
    assert np.array_equal(
        tokens.train.ids(0, tokens.train.num_ids), np.concatenate([streams[0], streams[1]])
    )
    assert tokens.manifest["overlap"]["duplicate_documents"] == 1.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no whole number"),
        (b"\1\0\2", "no whole number"),
        (b"\1\0\xff\xff", "holds id 65535 at offset 1, the embedding has 300 rows"),
        (b"LITPKDS" + bytes(40), "litgpt file of ids in an unknown version or type"),
        (b"INHTTOKS" + bytes(60), "a shard of prepared tokens"),
    ],
)
def test_a_file_that_is_no_ids_of_this_tokenizer_is_named(tmp_path, content, said):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        open_flat_file(path, 300)
    assert str(path) in caught.value.message


def test_the_width_of_ids_is_found_out_or_said(tmp_path):
    ids = np.arange(2, 298)
    assert open_flat_file(write(tmp_path / "a.bin", ids), 300).width == 2
    wide = write(tmp_path / "b.bin", ids, "<u4")
    assert open_flat_file(wide, 300).width == 4
    assert open_flat_file(wide, 300, width=2).ids[1] == 0
    large = write(tmp_path / "c.bin", ids + 65_536, "<u4")
    assert open_flat_file(large, 70_000).ids[0] == 65_538


def test_an_index_that_does_not_fit_is_named(tmp_path):
    path = write(tmp_path / "a.ds", range(10))
    for content in (b"\1", np.array([5], "<u8").tobytes(), b""):
        (tmp_path / "a.ds.index").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.ds\.index"):
            open_flat_file(path, 300)


def test_a_recipe_takes_imported_tokens_for_its_own(streams, text_folder, tokenizer, tmp_path):
    train, val = both(streams, tmp_path)
    out = tmp_path / "tokens"
    first = import_tokens(FlatFiles([train], [val]), tokenizer, 300, out)
    again = import_tokens(FlatFiles([train], [val]), tokenizer, 300, out)
    assert again.fingerprint == first.fingerprint
    data = Data(source=str(text_folder), val_fraction=0.5, sample=0.1)
    assert prepare_text(data, tokenizer, 300, 16, out).fingerprint == first.fingerprint
    with pytest.raises(DataError, match="embedding rows changed"):
        prepare_text(data, tokenizer, 400, 16, out)
    with pytest.raises(DataError, match="holds other tokens"):
        import_tokens(FlatFiles([val], [val]), tokenizer, 300, out)


def test_the_command_line_imports_and_inspects(streams, tokenizer, tmp_path):
    from typer.testing import CliRunner

    from inheritune.cli.app import app

    train, val = both(streams, tmp_path)
    home, out = str(tokenizer.directory), str(tmp_path / "tokens")
    given = ["--from-bin", str(train), "--val-from-bin", str(val)]
    invoke = CliRunner().invoke
    result = invoke(app, ["prepare", *given, "--tokenizer", home, "--out", out, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["train_tokens"] == len(streams[0])
    for arguments, said in (
        (["prepare"], "give a recipe, or --from-bin"),
        (["prepare", *given], "give a recipe, or --from-bin"),
        (["prepare", "--val-from-bin", str(val)], "needs --from-bin"),
        (["prepare", *given, "--dtype", "int8"], "--dtype is 'int8'"),
    ):
        result = invoke(app, [*arguments, "--json"])
        assert result.exit_code == 2 and said in json.loads(result.stdout)["message"]
    result = invoke(app, ["inspect", out, "--json", "--length", "8"])
    facts = json.loads(result.stdout)
    assert (facts["train_tokens"], facts["windows"][0]["text"]) == (len(streams[0]), None)
    assert facts["windows"][0]["ids"] == streams[0][:8].tolist()
    result = invoke(app, ["inspect", out, "--json", "--tokenizer", home, "--windows", "3"])
    shown = json.loads(result.stdout)["windows"]
    assert [w["split"] for w in shown] == ["train"] * 3 + ["val"] * 3
    assert shown[0]["text"] == tokenizer.decode(streams[0][:64].tolist())
    assert invoke(app, ["inspect", out, "--tokenizer", home]).exit_code == 0
    assert invoke(app, ["inspect", str(tmp_path)]).exit_code == 3


# --- formats that say themselves what they are ---


def cases(name, out):
    """Write the files of a layout as its own program does."""
    docs = [np.array(doc) for doc in ([5, 6, 7], [8, 9], [10, 11, 12, 13])]
    ids = np.concatenate(docs)
    sizes = np.array([len(doc) for doc in docs], dtype="<i4")
    ends = np.cumsum(sizes)
    if name == "megatron":
        path = write(out / "a.bin", ids, "<i4")
        starts = ((ends - sizes) * 4).astype("<i8")
        head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 3, 4)
        index = head + sizes.tobytes() + starts.tobytes() + np.arange(4, dtype="<i8").tobytes()
        path.with_suffix(".idx").write_bytes(index)
        return path
    bounds = np.concatenate([[0], ends]) * 4 + 4 * (len(docs) + 2)
    head = np.concatenate([[len(docs)], bounds]).astype("<u4").tobytes()
    config = {"compression": None, "data_format": ["no_header_tensor:16"]}
    (out / "index.json").write_text(json.dumps({"chunks": [], "config": config}))
    return write(out / "chunk-0-0.bin", ids, "<i4", head)


def test_a_file_of_llm_c_for_llama_3_has_ids_of_four_bytes(tmp_path):
    ids = np.array([65_600, 3, 69_999, 4] * 300)
    head = np.zeros(256, dtype="<i4")
    head[:3] = 20240801, 7, len(ids)
    opened = open_flat_file(write(tmp_path / "a.bin", ids, "<u4", head.tobytes()), 70_000)
    assert opened.format == "llm.c" and np.array_equal(opened.ids, ids)
    with pytest.raises(DataError, match="its ids have 4 bytes, --dtype says 2"):
        open_flat_file(tmp_path / "a.bin", 70_000, width=2)
    head[1] = 9
    with pytest.raises(DataError, match=r"a\.bin is a file of llm\.c in the unknown version 9"):
        open_flat_file(write(tmp_path / "a.bin", ids, "<u4", head.tobytes()), 70_000)


@pytest.mark.parametrize("name", ["megatron", "litdata"])
@pytest.mark.parametrize("rows", [300, 70_000])
def test_an_index_gives_the_documents_of_megatron_and_litdata(tmp_path, name, rows):
    opened = open_flat_file(cases(name, tmp_path), rows)
    assert (opened.format, opened.width) == (name, 4)
    assert opened.ids.tolist() == list(range(5, 14))
    assert list(opened.documents(0)) == [(0, 3), (3, 5), (5, 9)]


def test_an_index_of_megatron_for_another_file_is_refused(tmp_path):
    path = cases("megatron", tmp_path)
    whole = path.with_suffix(".idx").read_bytes()
    for content, said in (
        (whole[:60], r"a\.idx does not fit"),
        (whole[:34] + b"\x09" + whole[35:], r"a\.idx does not fit"),
        (whole[:9] + b"\2" + whole[10:], "version 2"),
        (b"other", "no index of Megatron"),
    ):
        path.with_suffix(".idx").write_bytes(content)
        with pytest.raises(DataError, match=said):
            open_flat_file(path, 300)


def test_a_chunk_of_litdata_without_its_index_or_compressed_is_refused(tmp_path):
    path = cases("litdata", tmp_path)
    (tmp_path / "index.json").write_text('{"config": {"compression": "zstd"}}')
    with pytest.raises(DataError, match="holds no plain ids"):
        open_flat_file(path, 300)
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match=r"a chunk of litdata, and its index\.json is missing"):
        open_flat_file(path, 300)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"text": "a row of some length"}\n' * 4, "a JSON file"),
        (b"\x93NUMPY" + bytes(58), "a NumPy file"),
        (b"PK\x03\x04" + bytes(60), "a zip file"),
        (b"\x1f\x8b" + bytes(62), "a gzip file"),
        (b"PAR1" + bytes(60), "a parquet file"),
    ],
)
def test_a_file_of_another_kind_holds_no_ids_however_large_the_vocabulary(tmp_path, content, kind):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError, match=f"is {kind}, not a file of ids"):
        open_flat_file(tmp_path / "a.bin", 70_000, width=2)


def test_above_65536_rows_two_bytes_are_an_id_only_when_that_is_said(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(np.random.default_rng(0).bytes(40_000))
    with pytest.raises(DataError, match="the embedding has 70000 rows"):
        open_flat_file(path, 70_000)
    assert open_flat_file(path, 70_000, width=2).width == 2


def test_flat_files_of_two_widths_are_refused_together(streams, tokenizer, tmp_path):
    train = write(tmp_path / "a.bin", streams[0], "<u2")
    val = write(tmp_path / "b.bin", streams[1], "<u4")
    with pytest.raises(DataError, match=r"a\.bin has 2, .*b\.bin has 4"):
        import_tokens(FlatFiles([train], [val]), tokenizer, 300, tmp_path / "tokens")


def test_a_million_ids_without_eos_are_refused_unless_their_type_is_said(
    streams, tokenizer, tmp_path
):
    ids = np.resize(np.arange(5, 50), 1_000_000)
    train, val = write(tmp_path / "a.bin", ids), write(tmp_path / "b.bin", streams[1])
    with pytest.raises(DataError, match="EOS, id 0, 0 times in 1,000,000 ids"):
        import_tokens(FlatFiles([train], [val]), tokenizer, 300, tmp_path / "tokens")
    tokens = import_tokens(FlatFiles([train], [val], width=2), tokenizer, 300, tmp_path / "tokens")
    assert tokens.train.num_ids == 1_000_001
