"""Inject faults into text, parquet files, token shards and their preparation."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import COMMIT, Hub, serve, taken_for_the_hub
from source_documents import documents

from inheritune.data import encoding
from inheritune.data.bad_rows import BadRows
from inheritune.data.hub_dataset import hub_documents
from inheritune.data.parquet import parquet_rows
from inheritune.data.prepare_text import prepare_text
from inheritune.data.shards import HEADER_BYTES, ShardWriter
from inheritune.data.text_column import TextColumn
from inheritune.data.tokenizer import open_tokenizer, train_tokenizer
from inheritune.data.tokens import TokenStream, check_budget, open_tokens, verify_tokens
from inheritune.errors import DataError, MachineError
from inheritune.recipe.data import Data, TextSource

WORDS = "the of and a to in he have it that for they with as not on she at by this we you do but"

CHILD = """
import json, os, resource, signal, sys
from pathlib import Path
source, tokenizer, out, kill_at, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
steps = {"left": int(kill_at)}
def watch(event, arguments):
    touched = [a for a in arguments if isinstance(a, (str, os.PathLike))]
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        if any("tokens" in os.fspath(a) for a in touched):
            steps["left"] -= 1
            if steps["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
from inheritune.data.prepare_text import prepare_text
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import InherituneError
from inheritune.recipe.data import Data
from inheritune.data import encoding
opened = open_tokenizer(Path(tokenizer))
encoding._BATCH_DOCUMENTS = 3
workers = int(os.environ.get("TEST_WORKERS", "0"))
sys.addaudithook(watch)
try:
    data = Data(source=source, val_fraction=0.2)
    prepare_text(data, opened, 300, 16, Path(out), shard_ids=2000, workers=workers)
except InherituneError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def story(seed, words=200):
    chooser = random.Random(seed)
    return " ".join(chooser.choice(WORDS.split()) for _ in range(words)) + ".\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((story(seed) for seed in range(20)), 300, directory)
    return open_tokenizer(directory)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:03d}.txt").write_text(story(number))
    return folder


@pytest.fixture
def shards(folder, tokenizer, tmp_path):
    """A prepared directory of several shards."""
    data = Data(source=str(folder), val_fraction=0.2)
    prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens", shard_ids=2000)
    return tmp_path / "tokens"


def read_all(source, **options):
    return list(documents(str(source), **options))


def error_of(call, *arguments, **options):
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == 3
    assert caught.value.hint and "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path, offset, content):
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)


def child(source, tokenizer, out, kill_at=0, limit=0):
    arguments = [str(source), str(tokenizer.directory), str(out), str(kill_at), str(limit)]
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False
    )


def write_parquet(path, texts, name="text", **options):
    pq.write_table(pa.table({name: texts, "id": list(range(len(texts)))}), path, **options)
    return path


def bytes_of(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", ""),
        ("blank.txt", " \n\t\n"),
        ("none.jsonl", ""),
        ("blank.jsonl", "\n\n"),
        ("null.jsonl", '{"text": null}\n{"text": null}\n'),
        ("blanks.jsonl", '{"text": ""}\n{"text": "  "}\n'),
    ],
)
@pytest.mark.fault("C1")
def test_a_source_without_text_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert f"there is no text in {tmp_path / name}" in error_of(read_all, tmp_path / name)


@pytest.mark.parametrize("texts", [[], [None, None], ["", " \n"]])
@pytest.mark.fault("C1")
def test_a_parquet_file_without_text_is_named(tmp_path, texts):
    path = write_parquet(tmp_path / "a.parquet", pa.array(texts, type=pa.string()))
    assert f"there is no text in {path}" in error_of(read_all, path)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([7], "holds int64, not text; columns: text, id"),
        ([b"x"], "holds binary, not text; columns: text, id"),
        ([["x"]], "not text; columns: text, id"),
        ([{"en": "x"}], "not text; columns: text, id"),
    ],
)
@pytest.mark.fault("C2")
def test_a_parquet_column_without_text_lists_the_columns(tmp_path, texts, said):
    path = write_parquet(tmp_path / "a.parquet", texts)
    message = error_of(read_all, path)
    assert said in message and str(path) in message
    write_parquet(path, ["x"], name="body")
    assert "no column 'text'; its columns are body, id" in error_of(read_all, path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"body": "x", "id": 1}', "no column 'text'; its columns are body, id"),
        ('{"text": 7, "id": 1}', "holds int, not text; columns: text, id"),
        ('{"text": {"en": "x"}}', "holds dict, not text; columns: text"),
        ('{"text": ["x"]}', "holds list, not text; columns: text"),
        ("{}", "no column 'text'; its columns are none"),
        (r'{"a\u001b]0;x": 1}', r"no column 'text'; its columns are a\x1b]0;x"),
    ],
)
@pytest.mark.fault("C2")
def test_a_row_without_text_lists_its_columns(tmp_path, row, said):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "fine"}}\n{row}\n')
    message = error_of(read_all, tmp_path / "rows.jsonl")
    assert said in message and "rows.jsonl, line 2" in message


@pytest.mark.fault("C3")
def test_too_few_training_tokens_are_counted(folder, tokenizer, tmp_path):
    data = Data(source=str(folder), val_fraction=0.9)
    message = error_of(prepare_text, data, tokenizer, 300, 100_000, tmp_path / "tokens")
    assert "one sequence needs 100001" in message and "training text has" in message
    assert not (tmp_path / "tokens").exists() and not (tmp_path / "tokens.partial").exists()


@pytest.mark.fault("C3")
def test_finished_tokens_are_counted_again_for_a_longer_sequence(
    shards, folder, tokenizer, tmp_path
):
    data = Data(source=str(folder), val_fraction=0.2)
    message = error_of(prepare_text, data, tokenizer, 300, 100_000, shards, shard_ids=2000)
    assert "one sequence needs 100001" in message


@pytest.mark.fault("C4")
def test_an_empty_validation_split_asks_for_a_larger_share(folder, tokenizer, tmp_path):
    data = Data(source=str(folder), val_fraction=1e-9)
    message = error_of(prepare_text, data, tokenizer, 300, 16, tmp_path / "tokens")
    assert "validation text has 0 tokens" in message and "data.val_fraction" in message


@pytest.mark.fault("C4")
def test_a_validation_split_under_one_window_is_refused(folder, tokenizer, tmp_path):
    (tmp_path / "val.txt").write_text("the of")
    data = Data(source=str(folder), val_source=str(tmp_path / "val.txt"))
    message = error_of(prepare_text, data, tokenizer, 300, 64, tmp_path / "tokens")
    assert "one sequence needs 65" in message and "data.val_fraction" not in message


@pytest.mark.fault("C5")
def test_more_tokens_than_there_are_need_allow_repeat(shards):
    tokens = open_tokens(shards)
    available = tokens.train.num_samples(16) * 16
    check_budget(tokens, available, 16, allow_repeat=False)
    message = error_of(check_budget, tokens, 2 * available, 16, allow_repeat=False)
    assert str(available) in message and "2.0 epochs" in message
    assert "data.allow_repeat" in message
    check_budget(tokens, 2 * available, 16, allow_repeat=True)
    step = error_of(check_budget, tokens, 2, 16, allow_repeat=False, step_tokens=3 * available)
    assert f"one step takes {3 * available} tokens (train.batch_tokens)" in step
    assert "3.0 epochs. Lower train.batch_tokens, add text" in step


BROKEN = {
    "a cut row": b'{"text": "hel',
    "not JSON": b"hello",
    "not an object": b"[1]",
    "NUL": b'{"text": "a\\u0000b"}',
    "a lone surrogate": b'{"text": "a\\ud800b"}',
    "bad UTF-8": b'{"text": "\xff"}',
    "too deep": b'{"text": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.fault("C6")
def test_a_broken_line_is_named_or_skipped_up_to_the_limit(tmp_path, what):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "one"}\r\n' + BROKEN[what] + b'\n{"text": "three"}\n')
    assert f"{path}, line 2:" in error_of(read_all, path)
    kept = read_all(path, max_bad_rows=1)
    assert [(d.name, d.text) for d in kept] == [("rows.jsonl:1", "one"), ("rows.jsonl:3", "three")]
    path.write_bytes(path.read_bytes() + BROKEN[what] + b"\n")
    assert "line 4" in error_of(read_all, path, max_bad_rows=1)


@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfe", b"a\xed\xa0\x80b"])
@pytest.mark.fault("C6")
def test_a_broken_text_file_is_named_or_skipped(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("fine")
    assert f"cannot read {tmp_path / 'a.txt'}:" in error_of(read_all, tmp_path)
    assert [d.name for d in read_all(tmp_path, max_bad_rows=1)] == ["b.txt"]


@pytest.mark.slow
@pytest.mark.fault("C6")
def test_a_line_of_300_mb_is_skipped(tmp_path):
    with (tmp_path / "rows.jsonl").open("wb") as stream:
        stream.write(b'{"text": "')
        for _ in range(300):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n{"text": "after"}\n')
    assert "line 1: it is above 256 MB" in error_of(read_all, tmp_path)
    assert [d.text for d in read_all(tmp_path, max_bad_rows=1)] == ["after"]


def encrypted(path):
    import pyarrow.parquet.encryption as pe

    class Keys(pe.KmsClient):
        def __init__(self, settings):
            pe.KmsClient.__init__(self)

        def wrap_key(self, key, name):
            return key

        def unwrap_key(self, key, name):
            return key

    settings = pe.EncryptionConfiguration(footer_key="f", column_keys={"k": ["text"]})
    properties = pe.CryptoFactory(Keys).file_encryption_properties(
        pe.KmsConnectionConfig(), settings
    )
    table = pa.table({"text": ["secret"] * 10})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


MALFORMED = {
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "no magic": lambda path: path.write_bytes(b"NOPE" + path.read_bytes()[4:-4] + b"NOPE"),
    "empty": lambda path: path.write_bytes(b""),
    "only magic": lambda path: path.write_bytes(b"PAR1PAR1"),
    "text": lambda path: path.write_text("hello " * 100),
    "a huge footer": lambda path: rewrite(path, path.stat().st_size - 8, b"\xff\xff\xff\x7f"),
    "pages of zeros": lambda path: rewrite(path, 4, bytes(3000)),
    "encrypted": encrypted,
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.fault("C7")
def test_a_malformed_parquet_file_is_named_or_skipped(tmp_path, what):
    path = write_parquet(tmp_path / "a.parquet", [story(i) for i in range(40)])
    MALFORMED[what](path)
    assert f"cannot read {path}: pyarrow says: " in error_of(read_all, tmp_path)
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}')
    assert [d.text for d in read_all(tmp_path, max_bad_rows=1)] == ["fine"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.fault("C7")
def test_a_parquet_file_with_another_name_is_named(tmp_path, suffix):
    write_parquet(tmp_path / "a.parquet", [story(1)]).rename(tmp_path / f"a{suffix}")
    assert f"a{suffix}" in error_of(read_all, tmp_path)


# Not getrusage: its peak is inherited from the process that started this one.
PEAK = """
status = dict(line.split(':') for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(status['VmHWM'].split()[0])
"""
MEASURED = """
import sys
from inheritune.data.sources import Source
from inheritune.recipe.data import TextSource
from inheritune.errors import DataError
from inheritune.data.text_column import TextColumn
try:
    source = Source(TextSource(source=sys.argv[1]), TextColumn("text"), 0)
    print(sum(len(d.text) for _, d in source.read()), file=sys.stderr)
except DataError as error:
    print(error, file=sys.stderr)
"""


def memory_of_reading(path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED + PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout) * 1024, done.stderr


def write_zeros(path, megabytes):
    """Write a row a megabyte, each a page, in row groups of a gigabyte."""
    rows = pa.chunked_array([pa.array(["0" * (1 << 20)] * 64)] * (megabytes // 64))
    options = {"row_group_size": 1 << 10, "write_batch_size": 1, "use_dictionary": False}
    pq.write_table(pa.table({"text": rows}), path, compression="zstd", **options)
    assert pq.read_metadata(path).num_row_groups == max(1, megabytes >> 10)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.fault("C7")
def test_memory_is_bounded_by_pages_and_not_by_row_groups(tmp_path):
    path = tmp_path / "zeros.parquet"
    write_zeros(path, 512)
    assert path.stat().st_size < 1 << 20
    small, _ = memory_of_reading(write_parquet(tmp_path / "a.parquet", ["a"]))
    used, said = memory_of_reading(path)
    assert said.split() == [str(512 << 20)]
    assert used - small < 160 << 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.fault("C7")
def test_ten_gigabytes_of_zeros_in_a_small_file_stay_small(tmp_path):
    path = tmp_path / "zeros.parquet"
    write_zeros(path, 10 << 10)
    assert path.stat().st_size < 8 << 20
    used, said = memory_of_reading(path)
    assert said.split() == [str(10 << 30)]
    assert used < 400 << 20


def flipped(path, text):
    """The file with one byte of a text changed."""
    content = bytearray(path.read_bytes())
    content[content.index(text.encode()) + 3] ^= 1
    path.write_bytes(content)


@pytest.mark.fault("C8")
def test_a_flipped_byte_is_found_where_pages_have_checksums(tmp_path):
    texts = [story(i) for i in range(20)]
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False}
    write_parquet(path, texts, write_page_checksum=True, **options)
    assert [d.text for d in read_all(path)] == texts
    flipped(path, texts[7])
    assert str(path) in error_of(read_all, path)
    # Without checksums nobody can know, and the documentation says so.
    write_parquet(path, texts, **options)
    flipped(path, texts[7])
    found = [d.text for d in read_all(path)]
    assert [a == b for a, b in zip(found, texts, strict=True)].count(False) == 1
    assert "a flipped byte in the text is not noticed" in " ".join(parquet_rows.__doc__.split())


CHANGES = {
    "odd length": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes"),
    "one byte short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "2000 bytes"),
    "no ids": (lambda path: path.write_bytes(path.read_bytes()[:64]), "64 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes, not even a header"),
    "missing": (lambda path: path.unlink(), "no such file"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "cannot read"),
    "wrong magic": (lambda path: rewrite(path, 0, b"PAR1"), "is not a token shard"),
    "wrong byte order": (lambda path: rewrite(path, 8, b"\0\0\0\1"), "version 16777216"),
    "future version": (lambda path: rewrite(path, 8, b"\2\0\0\0"), "format version 2"),
    "other width": (lambda path: rewrite(path, 12, b"\4\0\0\0"), "4 bytes an id"),
    "other count": (lambda path: rewrite(path, 16, b"\1\0\0\0"), "speaks of 1 ids"),
    "huge count": (lambda path: rewrite(path, 16, b"\xff" * 8), "speaks of"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", ["train-00001.bin", "val-00000.bin"])
@pytest.mark.fault("C9")
def test_a_malformed_shard_is_named(shards, what, name):
    change, said = CHANGES[what]
    change(shards / name)
    message = error_of(open_tokens, shards)
    assert str(shards / name) in message and said in message


@pytest.mark.parametrize("position", [0, 1, -1])
@pytest.mark.fault("C10")
def test_a_flipped_byte_is_found_on_first_use_and_by_verify(shards, position):
    path = shards / "train-00001.bin"
    size = path.stat().st_size
    offset = range(HEADER_BYTES, size)[position]
    rewrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))
    tokens = open_tokens(shards)  # what it reads is sound
    assert tokens.train.samples(np.array([0]), 16).shape == (1, 17)
    inside = np.array([2000 // 16 + 1])
    for message in (
        error_of(tokens.train.samples, inside, 16),
        error_of(verify_tokens, shards),
    ):
        assert f"{path} has changed" in message


@pytest.mark.fault("C10")
def test_a_flipped_byte_in_an_index_is_found_by_verify(shards):
    path = shards / "train-00001.idx"
    rewrite(path, 0, bytes([path.read_bytes()[0] ^ 1]))
    assert str(path) in error_of(verify_tokens, shards)


@pytest.mark.parametrize("bad", [300, 65_535])
@pytest.mark.fault("C11")
def test_an_id_without_a_row_is_named_with_its_offset(shards, bad):
    path = shards / "train-00001.bin"
    rewrite(path, HEADER_BYTES + 2 * 123, bad.to_bytes(2, "little"))
    rewrite(path, 24, bad.to_bytes(8, "little"))
    message = error_of(open_tokens, shards)
    assert f"{path} holds id {bad} at offset 123, the embedding has 300 rows" in message


@pytest.mark.parametrize("bad", [2**16, 2**32 - 1])
@pytest.mark.fault("C11")
def test_a_header_that_claims_a_larger_id_is_refused(shards, bad):
    path = shards / "train-00001.bin"
    rewrite(path, 24, bad.to_bytes(8, "little"))
    assert str(path) in error_of(open_tokens, shards)


@pytest.mark.parametrize("bad", [300, 2**16, 2**32 - 1])
@pytest.mark.fault("C11")
def test_an_id_without_a_row_is_never_written(tmp_path, bad):
    writer = ShardWriter(tmp_path, "train", 300, 1000)
    assert f"id {bad}, the embedding has 300 rows" in error_of(writer.add, np.array([bad]))
    assert writer.close() == []


@pytest.mark.parametrize("rows", [65_535, 65_536, 65_537])
@pytest.mark.fault("C12")
def test_every_id_comes_back_at_the_edge_of_two_bytes(tmp_path, rows):
    ids = np.random.default_rng(rows).permutation(rows)
    writer = ShardWriter(tmp_path, "train", rows, shard_ids=30_000)
    writer.add(ids)
    stream = TokenStream(tmp_path, writer.close(), rows)
    assert np.array_equal(stream.ids(0, rows), ids)
    width = 2 if rows <= 65_536 else 4
    assert (tmp_path / "train-00000.bin").stat().st_size == HEADER_BYTES + 30_000 * width


@pytest.mark.fault("C13")
def test_tokens_of_another_tokenizer_are_refused(shards, folder, tmp_path):
    train_tokenizer(["other text altogether"], 300, tmp_path / "other")
    data = Data(source=str(folder), val_fraction=0.2)
    other = open_tokenizer(tmp_path / "other")
    message = error_of(prepare_text, data, other, 300, 16, shards, shard_ids=2000)
    assert "prepared otherwise: the tokenizer changed" in message


@pytest.mark.fault("C13")
def test_a_token_added_later_makes_another_tokenizer(shards, folder, tokenizer, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(tokenizer.directory, changed)
    content = json.loads((changed / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 299, "content": "<new>"})
    (changed / "tokenizer.json").write_text(json.dumps(content))
    data = Data(source=str(folder), val_fraction=0.2)
    opened = open_tokenizer(changed)
    message = error_of(prepare_text, data, opened, 301, 16, shards, shard_ids=2000)
    assert "the tokenizer, embedding rows changed" in message


@pytest.mark.parametrize("change", [{"bos_token": "a"}, {"eos_token": "a"}])
@pytest.mark.fault("C14")
def test_tokens_with_another_bos_or_eos_are_not_reused(shards, folder, tokenizer, tmp_path, change):
    changed = tmp_path / "changed"
    shutil.copytree(tokenizer.directory, changed)
    path = changed / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"add_bos_token": "bos_token" in change} | change
    path.write_text(json.dumps(config))
    data = Data(source=str(folder), val_fraction=0.2)
    opened = open_tokenizer(changed)
    message = error_of(prepare_text, data, opened, 300, 16, shards, shard_ids=2000)
    assert "the tokenizer changed" in message


@pytest.mark.fault("C14")
def test_another_sequence_length_reads_the_same_tokens_anew(shards, folder, tokenizer):
    # Shards know no sequence length: a sample is cut when it is read.
    data = Data(source=str(folder), val_fraction=0.2)
    tokens = prepare_text(data, tokenizer, 300, 32, shards, shard_ids=2000)
    ids = tokens.train.ids(0, 65)
    assert np.array_equal(tokens.train.samples(np.array([1]), 32)[0], ids[32:65])
    assert np.array_equal(tokens.train.samples(np.array([1]), 16)[0], ids[16:33])


@pytest.mark.fault("C15")
def test_a_killed_prepare_is_repeated_to_the_same_bytes(folder, tokenizer, tmp_path, shards):
    whole = bytes_of(shards)
    out = tmp_path / "again" / "tokens"
    killed = 0
    for kill_at in (1, 2, 3, 5, 8, 11, 14, 17, 20, 22):
        done = child(folder, tokenizer, out, kill_at)
        killed += done.returncode == -signal.SIGKILL
        # Complete or absent, at every instant.
        assert not out.exists() or bytes_of(out) == whole
        if out.exists():
            shutil.rmtree(out)
    assert killed >= 8
    assert child(folder, tokenizer, out).returncode == 0
    assert bytes_of(out) == whole
    assert [path.name for path in out.parent.iterdir()] == ["tokens"]


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.fault("C15")
def test_prepare_killed_again_and_again_goes_on_after_its_last_whole_shard(
    folder, tokenizer, tmp_path, shards, monkeypatch, workers
):
    monkeypatch.setenv("TEST_WORKERS", workers)
    out = tmp_path / "again" / "tokens"
    staged = out.with_name("tokens.partial") / "tokens"
    chooser, kills, kept = random.Random(int(workers)), 0, []
    while not out.exists():
        done = child(folder, tokenizer, out, chooser.randrange(50, 100))
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        assert kills < 40
        there = staged if staged.is_dir() else out
        first = there / "train-00000.bin"
        kept += [first.stat().st_ino] * first.exists()
    assert kills >= 2 and bytes_of(out) == bytes_of(shards)
    # What was whole was not made again, once a journal told of it.
    assert len(kept) > 2 and kept[-1] == kept[-2] == kept[-3]
    assert child(folder, tokenizer, out).returncode == 0
    assert [path.name for path in out.parent.iterdir()] == ["tokens"]


def _prepare_slowly(source, directory, out, started, results):
    try:
        data = Data(source=source, val_fraction=0.2)
        opened = open_tokenizer(Path(directory))

        def wait():
            started.set()
            time.sleep(1)
            return False

        prepare_text(data, opened, 300, 16, Path(out), shard_ids=2000, stop=wait)
        results.put(0)
    except MachineError as error:
        results.put(error.exit_code)


@pytest.mark.fault("C16")
def test_the_second_of_two_prepares_is_told_of_the_first(folder, tokenizer, tmp_path, shards):
    out = tmp_path / "both" / "tokens"
    context = multiprocessing.get_context("spawn")
    started, results = context.Event(), context.Queue()
    arguments = (str(folder), str(tokenizer.directory), str(out), started, results)
    first = context.Process(target=_prepare_slowly, args=arguments)
    first.start()
    assert started.wait(60)
    data = Data(source=str(folder), val_fraction=0.2)
    with pytest.raises(MachineError, match="another process is preparing") as caught:
        prepare_text(data, tokenizer, 300, 16, out, shard_ids=2000)
    assert caught.value.exit_code == 4
    assert results.get(timeout=60) == 0
    first.join()
    assert bytes_of(out) == bytes_of(shards)
    assert prepare_text(data, tokenizer, 300, 16, out, shard_ids=2000).train.num_ids


def val_rows(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


@pytest.mark.fault("C17")
def test_a_validation_set_that_was_trained_on_is_refused(folder, tokenizer, tmp_path):
    texts = [story(number) for number in range(38, 58)]  # two of twenty are in the folder
    source = val_rows(tmp_path / "val.jsonl", texts)
    data = Data(source=str(folder), val_source=source)
    message = error_of(prepare_text, data, tokenizer, 300, 16, tmp_path / "tokens")
    assert "10.0% of the documents of data.val_source are also in data.source" in message
    assert not (tmp_path / "tokens").exists()


@pytest.mark.fault("C17")
def test_near_duplicates_are_reported(folder, tokenizer, tmp_path):
    near = [story(number).replace(".", " but.") for number in range(20)]
    source = val_rows(tmp_path / "val.jsonl", near)
    data = Data(source=str(folder), val_source=source)
    overlap = prepare_text(data, tokenizer, 300, 16, tmp_path / "near").manifest["overlap"]
    assert overlap["duplicate_documents"] == 0.0 and overlap["share"] > 0.9
    fresh = val_rows(tmp_path / "fresh.jsonl", [story(number) for number in range(500, 520)])
    data = Data(source=str(folder), val_source=fresh)
    overlap = prepare_text(data, tokenizer, 300, 16, tmp_path / "fresh").manifest["overlap"]
    assert overlap["share"] < 0.1


@pytest.mark.fault("C18")
def test_a_literal_end_of_text_stays_text_unless_asked(folder, tokenizer, tmp_path):
    text = "the of <|endoftext|> and a"
    (folder / "000.txt").write_text(text)
    as_text, as_token = (
        prepare_text(
            Data(source=str(folder), val_fraction=0.2, special_tokens_in_text=asked),
            tokenizer,
            300,
            16,
            tmp_path / str(asked),
        )
        for asked in (False, True)
    )
    for tokens, extra in ((as_text, 0), (as_token, 1)):
        ends = sum(
            int((stream.ids(0, stream.num_ids) == tokenizer.eos).sum())
            for stream in (tokens.train, tokens.val)
        )
        assert ends == 40 + extra
    assert as_text.fingerprint != as_token.fingerprint
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.eos not in ids and tokenizer.decode(ids) == text


@pytest.mark.fault("C19")
def test_a_million_of_one_character_and_identical_documents_work(tokenizer, tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number}.txt").write_text("a" * 1000)
    (tmp_path / "text" / "long.txt").write_text("a" * 1_000_000)
    data = Data(source=str(tmp_path / "text"), val_fraction=0.3, split_by="name")
    seen = []
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens", seen.append)
    assert tokens.manifest["overlap"]["duplicate_documents"] > 0.9
    assert any("repeat another one exactly" in progress.message for progress in seen)


@pytest.mark.slow
@pytest.mark.fault("C19")
def test_a_document_of_50_mb_is_prepared_in_bounded_memory(tokenizer, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(story(1) * (50_000_000 // len(story(1))))
    (tmp_path / "val.txt").write_text(story(2))
    code = (
        "import sys; from pathlib import Path; from inheritune.recipe.data import Data;"
        "from inheritune.data.prepare_text import prepare_text;"
        "from inheritune.data.tokenizer import open_tokenizer;"
        "prepare_text(Data(source=sys.argv[1], val_source=sys.argv[2]),"
        "open_tokenizer(Path(sys.argv[3])), 300, 16, Path(sys.argv[4]), shard_ids=1 << 20)"
    )
    paths = [tmp_path / "text", tmp_path / "val.txt", tokenizer.directory, tmp_path / "tokens"]
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 2_000_000  # KB


@pytest.mark.fault("C20")
def test_a_pattern_or_path_that_matches_nothing_is_named(tmp_path):
    assert "no file matches" in error_of(read_all, tmp_path / "*.txt")
    assert "there is no file or folder" in error_of(read_all, tmp_path / "absent.txt")
    assert "there is no file in" in error_of(read_all, tmp_path)
    assert "a source is empty" in error_of(list, documents(""))
    assert "there is no file in an empty list" in error_of(list, documents([]))
    assert "cannot open" in error_of(list, documents("a\0b"))


@pytest.mark.skipif(os.name != "posix", reason="sockets, pipes and links are POSIX files")
@pytest.mark.fault("C20")
def test_a_socket_a_pipe_and_a_link_to_itself_never_hang(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.txt")
    Path("loop.txt").symlink_to("loop.txt")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.txt")
    for name in ("pipe.txt", "socket.txt"):
        assert "neither a file nor a folder" in error_of(read_all, name)
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        Path(name).rename(folder / name)
        assert "not a regular file" in error_of(read_all, folder)
    assert "loop.txt" in error_of(read_all, "loop.txt")
    Path("folder").mkdir()
    Path("loop.txt").rename("folder/loop.txt")
    Path("folder/loop.txt").unlink()
    Path("folder/loop.txt").symlink_to("loop.txt")
    assert "loop.txt" in error_of(read_all, "folder")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads any file")
@pytest.mark.fault("C20")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    assert "a.txt" in error_of(read_all, tmp_path / "a.txt")


@pytest.mark.fault("C21")
def test_a_dataset_with_a_script_is_refused_and_the_script_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/data.py").write_text("open('PWNED', 'w')\n")
    part = TextSource(source=str(tmp_path / "data"))
    message = error_of(list, hub_documents(part, None, TextColumn("text"), BadRows(0)))
    assert "Dataset scripts are no longer supported" in message and "parquet" in message
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.fault("C21")
def test_a_dataset_without_the_config_or_split_lists_those_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    for setting in ("config", "split"):
        part = TextSource(source=str(tmp_path), **{setting: "nowhere"})
        message = error_of(list, hub_documents(part, None, TextColumn("text"), BadRows(0)))
        assert "nowhere" in message and "vailable" in message and str(tmp_path) in message


@pytest.mark.fault("C21")
def test_a_dataset_that_fails_while_it_is_read_gives_the_librarys_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ')
    part = TextSource(source=str(tmp_path))
    message = error_of(list, hub_documents(part, None, TextColumn("text"), BadRows(0)))
    assert f"cannot read the dataset {tmp_path}: " in message
    assert f"hf download {tmp_path} --repo-type dataset --local-dir DIR" in message


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "GatedRepo"), "its own words"),
        ((401, "RepoNotFound"), "Repository Not Found"),
        ((404, "RevisionNotFound"), "Revision Not Found"),
    ],
)
@pytest.mark.fault("C21")
def test_a_dataset_that_the_hub_refuses_gives_its_words(tokenizer, tmp_path, refusal, said):
    hub = Hub("someone/texts", {COMMIT: tmp_path}, refusal=refusal)
    data = Data(source="someone/texts")
    with serve(hub), taken_for_the_hub(hub, tmp_path / "home"):
        message = error_of(prepare_text, data, tokenizer, 300, 16, tmp_path / "out" / "tokens")
    assert "cannot read the dataset someone/texts: " in message
    assert said.lower() in message.lower()
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.fault("C22")
def test_the_order_of_sources_and_the_locale_change_nothing(
    folder, tokenizer, tmp_path, monkeypatch
):
    first = tmp_path / "one"
    prepare_text(Data(source=str(folder), val_fraction=0.2), tokenizer, 300, 16, first)
    globs = [str(folder / pattern) for pattern in ("02*.txt", "03*.txt", "00*.txt", "01*.txt")]
    monkeypatch.setenv("LC_ALL", "C")
    second = tmp_path / "two"
    prepare_text(Data(source=globs, val_fraction=0.2), tokenizer, 300, 16, second)
    assert open_tokens(first).fingerprint == open_tokens(second).fingerprint


@pytest.mark.parametrize(
    ("workers", "method"),
    [(1, "spawn"), (1, "fork"), (4, "spawn"), (4, "fork"), (16, "fork"), (4, "forkserver")],
)
@pytest.mark.skipif(os.name != "posix", reason="Windows has spawn only")
@pytest.mark.fault("C23")
def test_workers_and_how_they_are_started_change_no_byte(
    folder, tokenizer, tmp_path, shards, monkeypatch, workers, method
):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 3)
    data = Data(source=str(folder), val_fraction=0.2)
    out = tmp_path / "out"
    prepare_text(
        data, tokenizer, 300, 16, out, shard_ids=2000, workers=workers, start_method=method
    )
    assert bytes_of(out) == bytes_of(shards)


@pytest.mark.slow
@pytest.mark.fault("C23")
def test_sixteen_spawned_workers_change_no_byte(folder, tokenizer, tmp_path, shards, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 1)
    data = Data(source=str(folder), val_fraction=0.2)
    prepare_text(data, tokenizer, 300, 16, tmp_path / "out", shard_ids=2000, workers=16)
    assert bytes_of(tmp_path / "out") == bytes_of(shards)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
@pytest.mark.fault("C24")
def test_a_disk_that_fills_ends_with_4_and_leaves_no_half_shard(folder, tokenizer, tmp_path):
    out = tmp_path / "full" / "tokens"
    done = child(folder, tokenizer, out, limit=3000)
    assert done.returncode == 4
    assert str(out) in done.stderr and "Traceback" not in done.stderr
    assert not any(out.parent.iterdir())
