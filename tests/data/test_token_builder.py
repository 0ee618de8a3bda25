"""Several sources, samples, and going on where a preparation was stopped."""

import json

import numpy as np
import pytest
from source_documents import documents

from inheritune.data import encoding
from inheritune.data.document import held_out, sampled
from inheritune.data.journal import Journal
from inheritune.data.prepare_text import prepare_text, training_texts
from inheritune.errors import Interrupted, RecipeError
from inheritune.recipe.data import Data, TextSource


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch):
    """Batches of two documents would start a process for each core, for seconds."""
    monkeypatch.setattr(encoding, "usable_cores", lambda: 1)


def files_of(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


@pytest.fixture
def mixture(text_folder, stories, tmp_path):
    """Three sources with another word for each, so that every document tells where it is from."""
    rows = [json.dumps({"text": f"{i} {story}"}) for i, story in enumerate(stories * 3)]
    (tmp_path / "many.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"body": f"body {story[:300]}"}) for story in stories[:40]]
    (tmp_path / "few.jsonl").write_text("\n".join(rows))
    return Data(
        source=[
            TextSource(source=str(text_folder), weight=15),
            TextSource(source=str(tmp_path / "many.jsonl"), weight=80.5),
            TextSource(source=str(tmp_path / "few.jsonl"), weight=4.5, text_column="body"),
        ],
        val_fraction=0.1,
    )


def test_a_mixture_has_the_shares_asked_for_of_training_tokens(mixture, tokenizer, tmp_path):
    seen = []
    tokens = prepare_text(mixture, tokenizer, 300, 16, tmp_path / "tokens", seen.append)
    taken = tokens.manifest["sources"]["training_tokens"]
    assert sum(taken) == tokens.train.num_ids > 20_000
    for count, weight in zip(taken, (15, 80.5, 4.5), strict=True):
        assert abs(count - sum(taken) * weight / 100) < 400
    said = [progress.message for progress in seen if progress.message]
    assert len(said) == 1 and "many.jsonl has run out, which ends the mixture" in said[0]


def test_a_mixture_holds_the_documents_of_each_source_in_its_order(mixture, tokenizer, tmp_path):
    data = mixture.model_copy(update={"tokens": 10_000})
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    assert 10_000 < tokens.train.num_ids < 10_400
    ids = tokens.train.ids(0, tokens.train.num_ids)
    texts = [
        tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == 0))[:-1]
    ]
    for part in mixture.source:
        own = list(documents(part.source, part.text_column or "text"))
        own = [d.text for d in own if not held_out(d, data)]
        mixed = [text for text in texts if text in set(own)]
        assert mixed == own[: len(mixed)] and mixed


def test_workers_change_no_byte_of_a_mixture(mixture, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 5)
    for workers in (0, 3):
        prepare_text(
            mixture, tokenizer, 300, 16, tmp_path / str(workers), workers=workers,
            start_method="fork", shard_ids=3000,
        )  # fmt: skip
    assert files_of(tmp_path / "0") == files_of(tmp_path / "3")


def test_a_source_that_is_named_twice_is_read_twice(text_folder, tokenizer, tmp_path):
    part = TextSource(source=str(text_folder))
    tokens = prepare_text(
        Data(source=[part, part], val_fraction=0.1), tokenizer, 300, 16, tmp_path / "tokens"
    )
    assert tokens.manifest["overlap"]["repeated_documents"] == pytest.approx(0.5, abs=0.02)


def test_settings_of_a_dataset_belong_to_its_entry():
    with pytest.raises(ValueError, match="config belongs to each entry of source"):
        Data(source=[TextSource(source="a/b")], config="small")


def test_a_sample_is_taken_before_the_split(text_folder, tokenizer, tmp_path):
    data = Data(source=str(text_folder), val_fraction=0.3, sample=0.5)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    kept = [d for d in documents(str(text_folder)) if sampled(d, data.sample)]
    held = [d for d in kept if held_out(d, data)]
    found = tokens.manifest["documents"], tokens.manifest["val_documents"]
    assert found == (len(kept) - len(held), len(held)) and 0 < found[1] < found[0] < 40
    assert len(list(training_texts(data))) == found[0]
    assert tokens.manifest["sources"]["sample"] == 0.5
    with pytest.raises(RecipeError, match=r"data\.sample = 0\.5; now it is"):
        prepare_text(
            data.model_copy(update={"sample": 0.6}), tokenizer, 300, 16, tmp_path / "tokens"
        )
    with pytest.raises(RecipeError, match=r"data\.sample = 0\.5; now it is"):
        prepare_text(
            data.model_copy(update={"sample": None}), tokenizer, 300, 16, tmp_path / "tokens"
        )


def test_a_validation_set_of_several_sources_is_read_in_turn(text_folder, tokenizer, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 50)
    parts = [TextSource(source=str(tmp_path / f"{name}.txt")) for name in ("two", "one")]
    data = Data(source=str(text_folder), val_source=parts)
    tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    ids = tokens.val.ids(0, tokens.val.num_ids).tolist()
    assert tokenizer.decode(ids) == "two " * 50 + "one " * 50


def stop_after(count):
    answers = iter([False] * count)
    return lambda: next(answers, True)


@pytest.mark.parametrize("source", ["folder", "mixture"])
def test_an_interrupted_preparation_goes_on_after_its_last_whole_shard(
    source, mixture, text_folder, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 2)
    folder = Data(source=str(text_folder), val_fraction=0.2)
    data = mixture if source == "mixture" else folder
    whole = tmp_path / "whole"
    prepare_text(data, tokenizer, 300, 16, whole, shard_ids=1500)
    out, stops, said = tmp_path / "out", 0, []
    while not out.exists():
        try:
            prepare_text(
                data, tokenizer, 300, 16, out, said.append, stop_after(14), 1500, workers=0
            )
        except Interrupted:
            stops += 1
            assert stops < 60
    assert stops >= 2
    assert files_of(out) == files_of(whole)
    went_on = [p.message for p in said if "shards are there" in p.message]
    shards = [int(message.split()[0]) for message in went_on]
    assert len(shards) >= 2 and shards == sorted(shards)
    assert not (tmp_path / "out.partial").exists()


def test_a_shard_that_is_there_is_not_written_again(text_folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 2)
    data = Data(source=str(text_folder), val_fraction=0.2)
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        prepare_text(data, tokenizer, 300, 16, out, stop=stop_after(20), shard_ids=1500)
    shard = tmp_path / "out.partial" / "tokens" / "train-00000.bin"
    before = shard.stat()
    prepare_text(data, tokenizer, 300, 16, out, shard_ids=1500)
    after = (out / "train-00000.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    "change",
    [
        *("shard", "index", "rest", "journal", "hashes", "other request", "other files"),
        *("earlier version", "nothing there"),
    ],
)
def test_preparation_that_does_not_fit_the_journal_begins_anew(
    change, text_folder, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 2)
    data = Data(source=str(text_folder), val_fraction=0.2)
    out, room = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(Interrupted):
        prepare_text(data, tokenizer, 300, 16, out, stop=stop_after(20), shard_ids=1500)
    journal = Journal(room)
    (rest,) = room.glob("rest-train-*")
    changed = {
        "shard": journal.shards / "train-00000.bin",
        "index": journal.shards / "train-00000.idx",
        "rest": rest,
        "journal": journal.path,
        "hashes": room / "hashes-train",
    }.get(change)
    if changed:
        changed.write_bytes(changed.read_bytes()[:-8])
    if change == "nothing there":
        rest.unlink()
    if change == "other files":
        (text_folder / "999.txt").write_text("the end of it all\n")
    if change == "earlier version":
        state = json.loads(journal.path.read_text())
        journal.path.write_text(json.dumps(state | {"format": 1}))
    if change == "other request":
        data = data.model_copy(update={"val_fraction": 0.3})
    said = []
    prepare_text(data, tokenizer, 300, 16, out, said.append, shard_ids=1500)
    assert not [p for p in said if "shards are there" in p.message]
    prepare_text(data, tokenizer, 300, 16, tmp_path / "whole", shard_ids=1500)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_the_directory_of_a_preparation_is_never_its_own_text(stories, tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("\n\n".join(stories))
    for number, story in enumerate(stories):
        (tmp_path / f"{number}.txt").write_text(story)
    data = Data(source=str(tmp_path), val_fraction=0.2, tokens=3000)
    prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens", shard_ids=1000)


def test_a_share_of_a_validation_set_lies_within_a_larger_share(stories, tokenizer, tmp_path):
    for name, part in (("train", stories[:10]), ("val", stories)):
        rows = [
            json.dumps({"text": f"{name} {number} {story}"}) for number, story in enumerate(part)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    taken = {}
    for share in (0.3, 0.6, None):
        data = Data(
            source=str(tmp_path / "train.jsonl"),
            val_source=str(tmp_path / "val.jsonl"),
            val_sample=share,
        )
        tokens = prepare_text(data, tokenizer, 300, 16, tmp_path / f"tokens-{share}")
        ids = tokens.val.ids(0, tokens.val.num_ids)
        ends = np.flatnonzero(ids == tokenizer.eos) + 1
        taken[share] = {
            tokenizer.decode(part.tolist()) for part in np.split(ids, ends) if len(part)
        }
        assert tokens.manifest["sources"].get("val_sample") == share
    assert 0 < len(taken[0.3]) < len(taken[0.6]) < len(taken[None])
    assert taken[0.3] < taken[0.6] < taken[None]
