"""Inject damaged, endless and waiting files where a user names one: each is refused, or counted."""

import bz2
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training import group_work as work

from inheritune.data.bad_rows import BadRows
from inheritune.data.flat_files import open_flat_file
from inheritune.data.input_files import InputFile
from inheritune.data.text_column import TextColumn
from inheritune.data.text_files import read_documents
from inheritune.data.tokenizer import open_tokenizer, train_tokenizer
from inheritune.data.tokens import TokenDirectory, verify_tokens
from inheritune.errors import CheckpointError, DataError, MachineError, SourceError
from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import inherit
from inheritune.system.files import sha256
from inheritune.training.checkpoint_files import newest_first, verify_checkpoint

SPOILT = b"caf\xe9 au lait"  # Latin-1


def write_rows(path: Path, texts: list[bytes], **options: object) -> Path:
    """A parquet file whose text column holds these bytes, whatever they are."""
    buffers = pa.array(texts, type=pa.binary()).buffers()
    column = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    pq.write_table(pa.table({"text": column}), path, **options)
    return path


def texts_of(path: Path, bad: BadRows, start: int = 0) -> list[str]:
    file = InputFile(path.name, path)
    return [
        document.text for _, _, document in read_documents(file, TextColumn("text"), bad, start)
    ]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "jsonl.gz": gzip.compress,
    "jsonl.bz2": bz2.compress,
    "jsonl.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("options", [{"use_dictionary": True}, {"use_dictionary": False}])
@pytest.mark.fault("C25")
def test_a_parquet_row_that_is_not_utf8_is_one_bad_row(
    options: dict[str, bool], tmp_path: Path
) -> None:
    rows = [f"story {i}".encode() for i in range(40)]
    rows[7] = rows[29] = SPOILT
    path = write_rows(tmp_path / "a.parquet", rows, **options)
    bad = BadRows(2)
    good = [row.decode() for row in rows if row != SPOILT]
    assert texts_of(path, bad) == good and bad.seen == 2
    assert texts_of(path, BadRows(2), start=8) == good[7:]
    with pytest.raises(DataError, match=r"a\.parquet, row 8: byte 3 is not UTF-8"):
        texts_of(path, BadRows(0))


@pytest.mark.parametrize(
    "ending", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "txt"]
)
@pytest.mark.fault("C25")
def test_a_damaged_file_of_any_format_is_counted_or_refused_with_3(
    ending: str, tmp_path: Path
) -> None:
    draw = random.Random(0)
    path = tmp_path / f"a.{ending}"
    rows = [f"a story of {i} wörds".encode() * 5 for i in range(60)]
    if ending == "parquet":
        write_rows(path, rows, row_group_size=20)
    else:
        text = b"".join(b'{"text": "%s"}\n' % row for row in rows)
        path.write_bytes(COMPRESS.get(ending, bytes)(text))
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        texts_of(path, BadRows(1000))
        try:
            texts_of(path, BadRows(0))
        except DataError as error:
            assert error.exit_code == 3


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
@pytest.mark.fault("C26")
def test_rows_without_text_and_without_an_end_are_given_up(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.data.text_files._MOST_BLANK", 1000)
    path = tmp_path / f"a.{ending}"

    def write(*rows: int) -> None:
        """A row of text, then as many without, for each number."""
        texts = [text for count in rows for text in ["text", *[None] * count]]
        if ending == "parquet":
            pq.write_table(pa.table({"text": pa.array(texts, type=pa.string())}), path)
        else:
            lines = ["" if text is None else '{"text": "text"}' for text in texts]
            path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))

    write(999, 999)
    assert texts_of(path, BadRows(0)) == ["text"] * 2
    write(999, 100_000)
    with pytest.raises(DataError, match=r"1,000 rows up to row 2,001 hold no text"):
        texts_of(path, BadRows(0))
    assert texts_of(path, BadRows(1)) == ["text"] * 2


# -- pipes, and files without an end


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "tokenizer"
    train_tokenizer(["a story of a small model"] * 20, 300, directory)
    return directory


@pytest.mark.parametrize("name", ["a.bin", "a.ds", "a.ds.index", "a.ds.metadata"])
@pytest.mark.fault("C27")
def test_a_pipe_among_files_of_ids_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / name.removesuffix(".index").removesuffix(".metadata")
    path.write_bytes(bytes(64))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: it is not a regular file"):
        open_flat_file(path, rows=300)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.fault("C27")
def test_a_tokenizer_that_is_a_pipe_or_endless_is_refused_at_once(
    name: str, tokenizer_dir: Path
) -> None:
    (tokenizer_dir / "tokenizer.json").unlink()
    os.mkfifo(tokenizer_dir / name)
    with pytest.raises(DataError, match=f"{name}: it is not a regular file"):
        open_tokenizer(tokenizer_dir)
    (tokenizer_dir / name).unlink()
    with (tokenizer_dir / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=f"{name}: it is larger than"):
        open_tokenizer(tokenizer_dir)


@pytest.mark.parametrize("count", [-1, 0, 1000])
@pytest.mark.fault("C27")
def test_a_header_that_counts_other_ids_than_there_are_is_refused(
    count: int, tmp_path: Path
) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, count
    (tmp_path / "a.bin").write_bytes(header.tobytes() + bytes(200))
    with pytest.raises(DataError, match=f"has 100 ids, its header speaks of {count}"):
        open_flat_file(tmp_path / "a.bin", rows=300)


# -- work before the cheap look


@pytest.fixture
def no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a file of more than a gigabyte is read for its digest."""

    def refuse(path: Path, *_: object) -> str:
        assert path.stat().st_size < 1 << 30, f"{path} is hashed"
        return sha256(path)

    monkeypatch.setattr("inheritune.training.checkpoint_files.sha256", refuse)
    monkeypatch.setattr("inheritune.data.tokens.sha256", refuse)
    monkeypatch.setattr("inheritune.data.shards.sha256", refuse)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
@pytest.mark.usefixtures("no_hash")
@pytest.mark.fault("B29")
def test_a_checkpoint_file_of_another_size_is_not_hashed(
    name: str, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    work.run_training(tmp_path, tiny_tokens, stop_after=3)
    (checkpoint,) = newest_first(tmp_path / "checkpoints")
    with (checkpoint / name).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=f"{name} has 1,099,511,627,776 bytes"):
        verify_checkpoint(checkpoint)


@pytest.mark.usefixtures("no_hash")
@pytest.mark.fault("B29")
def test_token_files_of_another_size_are_not_hashed(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    for ending in ("idx", "bin"):
        tokens = tmp_path / ending
        shutil.copytree(tiny_tokens.path, tokens)
        with next(tokens.glob(f"train-*.{ending}")).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(DataError):
            verify_tokens(tokens)


@pytest.mark.fault("B29")
def test_an_endless_tokenizer_is_refused_before_it_is_read(
    tiny_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_reference, model)
    with (model / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(
        "inheritune.model_files.refusals._may_exceed", lambda *_: pytest.fail("it is read")
    )
    with pytest.raises(SourceError, match=r"tokenizer\.json is larger than"):
        open_model(str(model))


@pytest.mark.fault("B29")
def test_inherit_asks_for_room_before_it_copies_a_large_tensor_outside_the_layers(
    tiny_reference: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_reference, model)
    path = model / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_")
    size = 1 << 43  # eight terabytes that take no space: no disk of a test has room for a copy
    place = {"shape": [size // 4], "data_offsets": [end, end + size]}
    header["v_head.weight"] = {"dtype": "F32"} | place
    data, text = path.read_bytes()[8 + length :], json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        try:
            file.truncate(8 + len(text) + end + size)
        except OSError:
            pytest.skip("this file system holds no file of that size")
    with pytest.raises(MachineError, match=r"bytes are needed for the files of .*new"):
        inherit(open_model(str(model)), 1, tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if "new" in path.name]
