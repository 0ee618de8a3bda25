"""Tokens that several workers prepare: the same bytes, however many workers there are."""

import csv
import gzip
import json
import os
import platform
import signal
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inheritune.data import compression, journal, text_files, token_parts
from inheritune.data.encoding import Encoders
from inheritune.data.journal import NUM_PARTS, part_path
from inheritune.data.prepare_text import prepare_text
from inheritune.data.sources import open_sources
from inheritune.data.token_parts import TokenParts, Worker, prepare_parts
from inheritune.data.tokens import verify_tokens
from inheritune.errors import DataError, Interrupted, RecipeError
from inheritune.recipe.data import Data, TextSource
from inheritune.system.locks import locked


@pytest.fixture
def data(text_folder: Path, stories: list[str], tmp_path: Path) -> Data:
    """A folder of files, and a file that is longer than all of them."""
    rows = [json.dumps({"text": f"{i} {story}"}) for i, story in enumerate(stories * 2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    return Data(source=[str(text_folder), str(tmp_path / "rows.jsonl")], val_fraction=0.1)


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (journal, token_parts):
        monkeypatch.setattr(module, "NUM_PARTS", 4)


def worker(text: str, data: Data, tokenizer, out: Path, **more: object) -> TokenParts:
    return prepare_parts(data, tokenizer, 300, 16, out, Worker.of(text), workers=0, **more)


def files_of(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def ids_of(stream) -> list[int]:
    return stream.ids(0, stream.num_ids).tolist()


@pytest.fixture
def of_one(data: Data, tokenizer, tmp_path: Path) -> TokenParts:
    return worker("1/1", data, tokenizer, tmp_path / "one")


def test_one_two_and_three_workers_write_the_same_bytes(data, tokenizer, of_one, tmp_path):
    for count in (2, 3):
        out = tmp_path / f"of-{count}"
        left = [worker(f"{i}/{count}", data, tokenizer, out) for i in range(count, 0, -1)]
        assert [len(parts.missing) > 0 for parts in left] == [True] * (count - 1) + [False]
        assert left[0].tokens is None
        assert left[-1].tokens.fingerprint == of_one.tokens.fingerprint
        assert files_of(out) == files_of(of_one.path)
    assert not list(tmp_path.glob("*.partial"))
    verify_tokens(of_one.path)


def test_the_ids_of_one_source_are_those_of_a_single_process(data, tokenizer, of_one, tmp_path):
    alone = prepare_text(data, tokenizer, 300, 16, tmp_path / "alone", workers=0)
    for split in ("train", "val"):
        assert ids_of(getattr(of_one.tokens, split)) == ids_of(getattr(alone, split))
    same = ("documents", "val_documents", "val_bytes", "overlap", "request", "sources", "order")
    assert {k: of_one.tokens.manifest[k] for k in same} == {k: alone.manifest[k] for k in same}
    ours, theirs = (t.manifest["taken"]["sources"] for t in (of_one.tokens, alone))
    assert ours == theirs
    # What workers have prepared is what a run would prepare, and is taken as it is.
    again = prepare_text(data, tokenizer, 300, 16, of_one.path)
    assert again.fingerprint == of_one.tokens.fingerprint


def write(path: Path, texts: list[str]) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(rows.encode()))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    else:
        path.write_text(rows if path.suffix == ".jsonl" else "<|endoftext|>\n".join(texts))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "a.txt"])
def test_every_document_lies_in_one_part(name, stories, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_HEAD", 4096)  # so much is read of a text at a time
    write(tmp_path / name, [f"{i} {story}" for i, story in enumerate(stories * 3)])
    (source,) = open_sources(Data(source=str(tmp_path / name)))
    found = [[d for _, d in replace(source, share=(part, 5)).read()] for part in range(5)]
    assert [*chain(*found)] == [document for _, document in source.read()]
    assert sum(map(bool, found)) > 1


def test_a_worker_that_was_killed_goes_on_and_changes_no_byte(
    data, tokenizer, tmp_path, few_parts, monkeypatch
):
    out, small, encode = tmp_path / "killed", {"shard_ids": 640}, Encoders.encode
    one = worker("1/1", data, tokenizer, tmp_path / "small", **small)

    def deadly(self, *arguments, **more):
        for count, encoded in enumerate(encode(self, *arguments, **more)):
            if count == 40:
                os.kill(os.getpid(), signal.SIGKILL)
            yield encoded

    if not (child := os.fork()):
        monkeypatch.setattr(Encoders, "encode", deadly)
        worker("1/2", data, tokenizer, out, **small)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (out / "part-00.partial" / "journal.json").is_file()  # in the middle of a part
    assert worker("2/2", data, tokenizer, out, **small).tokens is None
    said = []
    assert worker("1/2", data, tokenizer, out, on_progress=said.append, **small).tokens is not None
    assert any("shards are there, going on after" in progress.message for progress in said)
    assert files_of(out) == files_of(one.path)


def test_what_a_stopped_single_process_left_is_not_joined(data, tokenizer, tmp_path, few_parts):
    out, left = tmp_path / "tokens", tmp_path / "tokens.partial"
    clean = worker("1/1", data, tokenizer, tmp_path / "clean", shard_ids=640)
    with pytest.raises(Interrupted):
        stop = (left / "journal.json").exists
        prepare_text(data, tokenizer, 300, 16, out, stop=stop, workers=0, shard_ids=640)
    assert (left / "hashes-train").stat().st_size > 0
    worker("1/1", data, tokenizer, out, shard_ids=640)
    assert files_of(out) == files_of(clean.path)
    assert not left.exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"tokens": 6_000}, "data.tokens is 6,000"),
        ({"source": [TextSource(source=n, weight=1) for n in "ab"]}, "has 2 sources with weights"),
    ],
)
def test_a_limit_of_tokens_and_a_mixture_are_refused_before_a_part_is_made(
    data, tokenizer, tmp_path, key, message
):
    with pytest.raises(RecipeError, match=message) as refused:
        worker("1/2", data.model_copy(update=key), tokenizer, tmp_path / "tokens")
    assert "repare without --worker" in refused.value.hint
    assert not (tmp_path / "tokens").exists()


def test_unfinished_parts_are_not_prepared_by_a_run_beside_them(data, tokenizer, tmp_path):
    worker("1/2", data, tokenizer, tmp_path / "tokens")
    with pytest.raises(DataError, match=rf"32 of {NUM_PARTS} parts are there") as refused:
        prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    assert "--worker" in refused.value.hint


def test_parts_of_another_recipe_are_refused(data, tokenizer, tmp_path):
    worker("1/2", data, tokenizer, tmp_path / "tokens")
    other = data.model_copy(update={"val_fraction": 0.2})
    with pytest.raises(RecipeError, match=r"part-00 were prepared with data.val_fraction = 0.1"):
        worker("1/2", other, tokenizer, tmp_path / "tokens")
    with pytest.raises(RecipeError, match=r"part-00 were prepared with data.val_fraction = 0.1"):
        worker("2/2", other, tokenizer, tmp_path / "tokens")  # found where the parts are joined


@pytest.mark.parametrize(
    ("module", "name", "value", "changed"),
    [
        (platform, "python_version", lambda: "3.0.1", r"Python = '3.*'; now it is '3.0.1'"),
        (compression, "zstd", None, r"libzstd = '1.*'; now it is 'none'"),
        (compression, "version", lambda name: "0.1", r"pyarrow = '.*'; now it is '0.1'"),
    ],
)
def test_parts_that_other_versions_have_read_are_not_joined(
    data, tokenizer, tmp_path, few_parts, monkeypatch, module, name, value, changed
):
    worker("1/2", data, tokenizer, tmp_path / "tokens")
    monkeypatch.setattr(module, name, value)
    with pytest.raises(DataError, match=rf"part-00 were prepared with .*{changed}") as refused:
        worker("2/2", data, tokenizer, tmp_path / "tokens")
    assert "All workers need the same versions" in refused.value.hint


def test_a_worker_that_waits_for_another_to_join_the_parts_says_so_once(
    data, tokenizer, tmp_path, few_parts
):
    out, said, lock = tmp_path / "tokens", [], ExitStack()
    one = worker("1/1", data, tokenizer, out)
    (out / "manifest.json").unlink()
    lock.enter_context(locked(tmp_path / "tokens.partial" / "lock", "another is at it"))
    asked = iter([None, None, lock.close])  # the third time it is asked, the other has ended

    def stop() -> bool:
        if act := next(asked, None):
            act()
        return False

    again = worker("1/1", data, tokenizer, out, on_progress=said.append, stop=stop)
    assert again.tokens.fingerprint == one.tokens.fingerprint
    waiting = [event.message for event in said if event.task == "waiting"]
    assert waiting == [f"another process works on {out}: waiting for it"]


def test_what_a_worker_left_that_was_killed_after_the_manifest_is_removed(
    data, tokenizer, tmp_path, few_parts
):
    worker("1/1", data, tokenizer, tmp_path / "tokens")
    (tmp_path / "tokens.partial").mkdir()
    (tmp_path / "tokens.partial" / "hashes-train").write_bytes(bytes(8))
    assert worker("1/1", data, tokenizer, tmp_path / "tokens").tokens is not None
    assert not (tmp_path / "tokens.partial").exists()


def test_a_part_whose_shard_is_gone_is_named(data, tokenizer, of_one):
    victim = part_path(of_one.path, 40) / "train-00000.bin"
    victim.unlink()
    with pytest.raises(DataError, match=r"part-40/train-00000.bin"):
        verify_tokens(of_one.path)


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/65", "a/b", "1/2/3", "-1/2", "1/0", "²/3"]
)
def test_a_worker_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(RecipeError, match=r"is no worker: I/N with 1 <= I <= N <= 64") as refused:
        Worker.of(text)
    assert "2/8" in refused.value.hint


def test_a_dataset_of_the_hub_is_to_be_downloaded_first(tokenizer, tmp_path):
    data = Data(source="roneneldan/TinyStories")
    with pytest.raises(RecipeError, match="roneneldan/TinyStories is a stream") as refused:
        worker("1/2", data, tokenizer, tmp_path / "tokens")
    assert "hf download --repo-type dataset roneneldan/TinyStories" in refused.value.hint
    assert not (tmp_path / "tokens").exists()
