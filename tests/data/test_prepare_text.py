import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from source_documents import documents

from inheritune.data.document import Document, held_out
from inheritune.data.prepare_text import prepare_text, training_texts
from inheritune.data.tokenizer import open_tokenizer, train_tokenizer
from inheritune.data.tokens import open_tokens
from inheritune.errors import DataError, Interrupted
from inheritune.recipe.data import Data

SHARED = Path(__file__).parents[3] / "shared" / "data"


def files_of(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def test_the_stream_is_the_documents_in_source_order_joined_by_eos(
    text_folder, stories, tokenizer, tmp_path
):
    data = Data(source=str(text_folder), val_fraction=0.2)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens", shard_ids=1000)
    for split, stream in ((False, tokens.train), (True, tokens.val)):
        texts = [s for s in stories if held_out(Document("", s), data) is split]
        ids = [i for encoded in tokenizer.encode_batch(texts) for i in [*encoded, 0]]
        assert stream.ids(0, stream.num_ids).tolist() == ids
    assert tokens.manifest["documents"] + tokens.manifest["val_documents"] == len(stories)
    held = [s for s in stories if held_out(Document("", s), data)]
    assert tokens.val_bytes == sum(len(s.encode()) for s in held)


def test_training_texts_are_the_documents_that_are_not_held_out(text_folder, stories):
    data = Data(source=str(text_folder), val_fraction=0.2)
    train = list(training_texts(data))
    assert 0 < len(train) < len(stories)
    assert train == [s for s in stories if not held_out(Document("", s), data)]


def test_split_by_text_is_the_documented_hash_and_ignores_names():
    data = Data(source="x", val_fraction=0.3)
    for number in range(200):
        text = f"text {number} ü"
        digest = hashlib.sha256(b"inheritune-split-1:" + text.encode()).digest()
        expected = int.from_bytes(digest[:8], "little") < 0.3 * 2**64
        assert held_out(Document("a", text), data) is expected
        assert held_out(Document(f"b{number}", text), data) is expected


def test_split_by_name_is_the_documented_hash_and_ignores_text():
    data = Data(source="x", val_fraction=0.3, split_by="name")
    for number in range(200):
        name = f"json/ü{number}.py"
        digest = hashlib.sha256(b"inheritune-split-1:" + name.encode()).digest()
        expected = int.from_bytes(digest[:8], "little") < 0.3 * 2**64
        assert held_out(Document(name, "one"), data) is expected
        assert held_out(Document(name, f"two {number}"), data) is expected


def test_split_by_name_holds_the_same_modules_out_for_ever():
    data = Data(source="stdlib", val_fraction=0.04, split_by="name")
    names = ["json/decoder.py", "argparse.py", "inspect.py", "distutils/config.py", "this.py"]
    assert [held_out(Document(name, "x"), data) for name in names] == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_exact_duplicates_fall_on_one_side_when_split_by_text(tokenizer, stories, tmp_path):
    rows = [json.dumps({"text": story}) for story in stories * 3]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = Data(source=str(tmp_path / "rows.jsonl"), val_fraction=0.2)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    assert tokens.manifest["val_documents"] % 3 == 0
    assert tokens.manifest["overlap"]["duplicate_documents"] == 0.0
    assert tokens.manifest["overlap"]["repeated_documents"] == pytest.approx(2 / 3)


def test_duplicates_across_a_split_by_name_are_reported(tokenizer, stories, tmp_path):
    rows = [json.dumps({"text": story}) for story in stories[:4] * 30]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = Data(source=str(tmp_path / "rows.jsonl"), val_fraction=0.2, split_by="name")
    overlap = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens").manifest["overlap"]
    assert (overlap["duplicate_documents"], overlap["share"]) == (1.0, 1.0)


def test_the_split_does_not_depend_on_order_or_on_other_documents(stories):
    data = Data(source="x", val_fraction=0.2)
    held = {s for s in stories if held_out(Document("", s), data)}
    assert held == {s for s in reversed(stories[:30]) if held_out(Document("z", s), data)} | {
        s for s in stories[30:] if held_out(Document("z", s), data)
    }


def test_a_second_run_gives_the_same_bytes(text_folder, tokenizer, tmp_path):
    data = Data(source=str(text_folder), val_fraction=0.2)
    for name in ("one", "two"):
        prepare_text(data, tokenizer, 300, 16, tmp_path / name, shard_ids=3000)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "text", "two"]


def test_threads_change_no_byte(text_folder, tokenizer, tmp_path):
    code = (
        "import sys; from pathlib import Path; from inheritune.recipe.data import Data;"
        "from inheritune.data.prepare_text import prepare_text;"
        "from inheritune.data.tokenizer import open_tokenizer;"
        "prepare_text(Data(source=sys.argv[1], val_fraction=0.2),"
        "open_tokenizer(Path(sys.argv[2])), 300, 16, Path(sys.argv[3]))"
    )
    for threads in ("1", "4"):
        arguments = [str(text_folder), str(tokenizer.directory), str(tmp_path / threads)]
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "LC_ALL": "C"}
        environment = os.environ | environment
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "4")


def test_finished_tokens_are_opened_and_not_made_again(text_folder, tokenizer, tmp_path):
    data = Data(source=str(text_folder), val_fraction=0.2)
    first = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    before = (tmp_path / "tokens" / "manifest.json").stat().st_mtime_ns
    seen = []
    again = prepare_text(data, tokenizer, 300, 32, tmp_path / "tokens", seen.append)
    assert again.fingerprint == first.fingerprint and not seen
    assert (tmp_path / "tokens" / "manifest.json").stat().st_mtime_ns == before


def test_tokens_are_used_where_the_text_is_no_longer_there(text_folder, tokenizer, tmp_path):
    data = Data(source=str(text_folder), val_fraction=0.2)
    prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    text_folder.rename(tmp_path / "elsewhere")
    assert prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens").val.num_ids


def test_changed_text_is_not_taken_for_the_prepared_one(text_folder, tokenizer, tmp_path):
    data = Data(source=str(text_folder), val_fraction=0.2)
    prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    (text_folder / "new.txt").write_text("more text")
    with pytest.raises(DataError, match="the text itself changed"):
        prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")


def test_a_directory_with_other_files_is_left_alone(text_folder, tokenizer, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files but no tokens"):
        prepare_text(Data(source=str(text_folder)), tokenizer, 300, 16, tmp_path / "tokens")
    assert files_of(tmp_path / "tokens") == {"letter.txt": b"mine"}
    assert not (tmp_path / "tokens.partial").exists()


def test_data_tokens_ends_the_training_text_and_keeps_all_validation(
    text_folder, tokenizer, tmp_path
):
    everything = Data(source=str(text_folder), val_fraction=0.2)
    whole = prepare_text(everything, tokenizer, 300, 16, tmp_path / "whole")
    some = everything.model_copy(update={"tokens": 1000})
    cut = prepare_text(some, tokenizer, 300, 16, tmp_path / "cut")
    assert 1000 < cut.train.num_ids < 1400
    n = cut.train.num_ids
    assert np.array_equal(cut.train.ids(0, n), whole.train.ids(0, n))
    assert cut.train.ids(n - 1, n).tolist() == [tokenizer.eos]
    assert cut.val_fingerprint == whole.val_fingerprint
    assert cut.fingerprint != whole.fingerprint


def test_a_validation_set_of_ones_own_holds_nothing_out(text_folder, stories, tokenizer, tmp_path):
    (tmp_path / "val.txt").write_text("she have the of to in " * 40)
    data = Data(source=str(text_folder), val_source=str(tmp_path / "val.txt"), tokens=2000)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    assert tokens.manifest["val_documents"] == 1
    assert tokens.manifest["split"] == {"rule": "val_source"}
    assert list(training_texts(data)) == stories


def test_stopped_preparation_leaves_nothing_behind(text_folder, tokenizer, tmp_path):
    data = Data(source=str(text_folder), val_fraction=0.2)
    out = tmp_path / "tokens"
    with pytest.raises(Interrupted) as caught:
        prepare_text(data, tokenizer, 300, 16, out, stop=lambda: True)
    assert caught.value.exit_code == 75
    answers = iter([False, True])  # the second question comes while the overlap is measured
    with pytest.raises(Interrupted):
        prepare_text(data, tokenizer, 300, 16, out, stop=lambda: next(answers))
    assert [p.name for p in tmp_path.iterdir()] == ["text"]
    assert prepare_text(data, tokenizer, 300, 16, out).train.num_ids


def test_progress_counts_bytes_and_then_tokens(text_folder, stories, tokenizer, tmp_path):
    seen = []
    data = Data(source=str(text_folder), val_fraction=0.2)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens", seen.append)
    size = sum(len(story.encode()) for story in stories)
    last = {progress.unit: (progress.done, progress.total) for progress in seen}
    assert last == {"bytes": (size, size), "tokens": (tokens.train.num_ids,) * 2}
    read = [progress for progress in seen if progress.unit == "bytes"]
    assert [progress.done for progress in read] == sorted(progress.done for progress in read)
    assert read[-1].facts == {"documents": "60", "tokens": f"{tokens.train.num_ids:,}"}


def test_progress_counts_tokens_where_that_many_are_asked_for(text_folder, tokenizer, tmp_path):
    seen = []
    data = Data(source=str(text_folder), val_fraction=0.2, tokens=1000)
    prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens", seen.append)
    last = [progress for progress in seen if progress.task == "preparing tokens"][-1]
    assert (last.done, last.total, last.unit) == (1000, 1000, "tokens")


def test_a_tokenizer_with_more_ids_than_rows_is_refused(text_folder, tokenizer, tmp_path):
    with pytest.raises(DataError, match="ids up to 299, the embedding has 299 rows"):
        prepare_text(Data(source=str(text_folder)), tokenizer, 299, 16, tmp_path / "tokens")


def test_fingerprints_differ_with_policy_split_and_text(text_folder, tokenizer, tmp_path):
    base = Data(source=str(text_folder), val_fraction=0.2)
    changes = [{}, {"special_tokens_in_text": True}, {"split_by": "name"}, {"val_fraction": 0.3}]
    found = {
        prepare_text(
            base.model_copy(update=change), tokenizer, 300, 16, tmp_path / str(i)
        ).fingerprint
        for i, change in enumerate(changes)
    }
    assert len(found) == len(changes)


def test_the_standard_library_is_prepared_with_a_tokenizer_of_its_own(tmp_path):
    data = Data(source="stdlib", split_by="name", val_fraction=0.04, tokens=200_000)
    texts = [text for text, _ in zip(training_texts(data), range(40), strict=False)]
    train_tokenizer(texts, 512, tmp_path / "tokenizer")
    tokenizer = open_tokenizer(tmp_path / "tokenizer")
    tokens = prepare_text(data, tokenizer, 512, 128, tmp_path / "tokens")
    held = [d for d in documents("stdlib") if held_out(d, data)]
    assert tokens.summary()["val_documents"] == len(held) > 10
    assert tokens.summary()["source"] == "stdlib"
    ids = tokens.val.ids(0, tokens.val.num_ids)
    ends = np.flatnonzero(ids == tokenizer.eos)
    assert tokenizer.decode(ids[: ends[0]].tolist()) == held[0].text
    assert len(ends) == len(held)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside this checkout")
def test_tinystories_is_prepared_with_the_tokenizer_of_its_model(tmp_path):
    tokenizer = open_tokenizer(SHARED / "checkpoints" / "stories260K")
    assert (tokenizer.rows, tokenizer.bos, tokenizer.eos) == (512, 1, 2)
    data = Data(source=str(SHARED / "text" / "tinystories.jsonl"), val_fraction=0.05)
    tokens = prepare_text(data, tokenizer, 512, 256, tmp_path / "tokens")
    ids = tokens.val.ids(0, tokens.val.num_ids)
    assert ids[0] == 1 and ids[-1] == 2
    assert (ids == 1).sum() == (ids == 2).sum() == tokens.manifest["val_documents"]
    assert tokens.train.num_ids > 300_000
    assert tokens.manifest["overlap"]["duplicate_documents"] == 0.0
    assert open_tokens(tmp_path / "tokens").summary() == tokens.summary()
