import json
import sys

import pytest
from hub_server import COMMIT, Hub, serve, taken_for_the_hub

from inheritune.data import sources, token_builder
from inheritune.data.bad_rows import BadRows
from inheritune.data.document import Document
from inheritune.data.hub_dataset import dataset_commit, hub_documents, is_hub_dataset
from inheritune.data.prepare_text import prepare_text
from inheritune.data.text_column import TextColumn
from inheritune.errors import DataError, MissingExtraError, RecipeError
from inheritune.recipe.data import Data, TextSource


@pytest.fixture
def folder(tmp_path):
    """A dataset as a directory, which the library reads like one on the Hub."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("a", "b"):
        rows = [{"id": i, "text": f"{name} {i}"} for i in range(1500)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def read(folder, column="text", start=None, **settings):
    part = TextSource(source=str(folder), **settings)
    return list(hub_documents(part, None, TextColumn(column), BadRows(0), start))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("HuggingFaceFW/fineweb-edu", True),
        ("a/b.c-d_e", True),
        ("stdlib", False),
        ("texts/corpus.jsonl", False),
        ("texts/*.txt", False),
        ("/texts/corpus", False),
        ("../texts", False),
        ("a/b/c", False),
        (["a/b"], False),
    ],
)
def test_a_name_with_an_owner_is_a_dataset(source, expected):
    assert is_hub_dataset(TextSource(source=source)) is expected


def test_a_folder_that_exists_is_no_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_dataset(TextSource(source="owner/name"))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_dataset(TextSource(source="owner/name"))


def test_rows_are_streamed_in_order(folder):
    found = [document for _, document in read(folder)]
    assert len(found) == 3000
    assert found[0] == Document(f"{folder}:1", "a 0")
    assert found[-1] == Document(f"{folder}:3000", "b 1499")


@pytest.mark.parametrize("number", [0, 998, 999, 1000, 1499, 1500, 2345, 2999])
def test_reading_goes_on_after_any_place(folder, number):
    whole = read(folder)
    place = json.loads(json.dumps(whole[number][0]))
    assert [d for _, d in read(folder, start=place)] == [d for _, d in whole[number + 1 :]]


def test_a_missing_column_lists_those_there_are(folder):
    with pytest.raises(DataError, match="no column 'body'; its columns are id, text"):
        read(folder, "body")


def test_without_the_library_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="needs the package datasets") as caught:
        read(folder)
    assert caught.value.hint == 'Install it: pip install "inheritune[data]"'


def test_a_revision_is_pinned_to_its_commit(folder, tmp_path):
    hub = Hub("someone/texts", {COMMIT: folder}, {"main": COMMIT, "v1": COMMIT})
    with serve(hub), taken_for_the_hub(hub, tmp_path / "home"):
        assert dataset_commit(TextSource(source="someone/texts")) == COMMIT
        assert dataset_commit(TextSource(source="someone/texts", revision="v1")) == COMMIT
        asked = len(hub.log)
        assert dataset_commit(TextSource(source="someone/texts", revision="2" * 40)) == "2" * 40
        assert len(hub.log) == asked
        with pytest.raises(DataError, match="cannot read the dataset someone/texts"):
            dataset_commit(TextSource(source="someone/texts", revision="v2"))


def test_a_commit_is_asked_for_again_where_the_connection_is_closed(folder, tmp_path):
    hub = Hub("someone/texts", {COMMIT: folder}, drops={0})
    with serve(hub), taken_for_the_hub(hub, tmp_path / "home"):
        assert dataset_commit(TextSource(source="someone/texts")) == COMMIT
        assert len(hub.log) == 2


def test_prepared_tokens_name_the_commit(folder, tokenizer, tmp_path, monkeypatch):
    asked = []

    def commit_of(part):
        asked.append(part)
        return COMMIT

    def documents_of(part, commit, *rest):
        assert (part.config, part.split, commit) == ("small", "train", COMMIT)
        return hub_documents(TextSource(source=str(folder)), None, *rest)

    monkeypatch.setattr(token_builder, "dataset_commit", commit_of)
    monkeypatch.setattr(sources, "hub_documents", documents_of)
    data = Data(
        source="someone/texts", config="small", split="train", tokens=2000, val_fraction=0.2
    )
    first = prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens")
    assert first.manifest["sources"]["commits"] == [COMMIT]
    # Of a dataset no more is read than is needed.
    assert 2000 < first.train.num_ids < 2100 and first.manifest["documents"] < 1000
    assert (
        prepare_text(data, tokenizer, 300, 16, tmp_path / "tokens").fingerprint == first.fingerprint
    )
    assert len(asked) == 1
    with pytest.raises(RecipeError, match=r"data\.config = 'small'; now it is 'large'"):
        other = data.model_copy(update={"config": "large"})
        prepare_text(other, tokenizer, 300, 16, tmp_path / "tokens")
