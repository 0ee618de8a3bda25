import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from inheritune.data import tokenizer as module
from inheritune.data.prepare_text import prepare_text
from inheritune.data.tokenizer import encode_documents, open_tokenizer
from inheritune.errors import DataError, RecipeError
from inheritune.recipe.data import Data

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "sentencepiece"
TEXTS = [
    "the of and",
    "  two  spaces ",
    "tabs\tand\nlines\r\n",
    "ünïcödé 漢字 🙂",
    "",
    "\n\n",
    "<s> </s>",
    "x",
]


def train(directory, stories, **options):
    model = io.BytesIO()
    settings = {"vocab_size": 330, "model_type": "bpe", "byte_fallback": True}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    SentencePieceTrainer.train(
        sentence_iterator=iter(stories), model_writer=model, minloglevel=2, **(settings | options)
    )
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


@pytest.fixture(params=[{}, {"model_type": "unigram", "vocab_size": 290}])
def directory(request, tmp_path, stories):
    return train(tmp_path / "model", stories, **request.param)


def test_ids_are_those_of_sentencepiece_itself(directory, stories):
    tokenizer = open_tokenizer(directory)
    own = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    texts = [*TEXTS, *stories]
    assert tokenizer.encode_batch(texts) == [own.encode(text) for text in texts]
    assert [tokenizer.decode(own.encode(text)) for text in TEXTS] == TEXTS
    assert (tokenizer.bos, tokenizer.eos, tokenizer.rows) == (1, 2, own.get_piece_size())
    assert tokenizer.decode([1, *own.encode("the of"), 2]) == "the of"


def test_a_long_text_has_the_ids_of_the_whole(directory, stories, monkeypatch):
    own = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    text = "\n".join([*stories, "  indented\n\n\n", *TEXTS, *stories])
    monkeypatch.setattr(module, "_PIECE", 900)
    (ids,) = encode_documents(open_tokenizer(directory), [text])
    assert ids.tolist() == [1, *own.encode(text), 2]


@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": False, "vocab_size": 100},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"treat_whitespace_as_suffix": True},
        {"add_dummy_prefix": False},
    ],
)
def test_a_long_text_has_the_same_ids_whatever_the_model_does_at_line_ends(
    tmp_path, stories, monkeypatch, options
):
    directory = train(tmp_path / "model", stories, **options)
    own = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    monkeypatch.setattr(module, "_PIECE", 900)
    text = "é\n".join([*stories, *TEXTS])
    (ids,) = encode_documents(open_tokenizer(directory), [text])
    assert ids.tolist() == [1, *own.encode(text), 2]


def test_sentencepiece_model_goes_to_another_process_unchanged(directory):
    tokenizer = open_tokenizer(directory)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


@pytest.mark.parametrize(
    ("config", "bos", "eos"),
    [
        ({}, 1, 2),
        ({"add_bos_token": False}, None, 2),
        ({"add_bos_token": True, "bos_token": {"content": ""}}, 1, 2),
        ({"tokenizer_class": "T5Tokenizer"}, None, 2),
        ({"eos_token": "<unk>"}, 1, 0),
        ({"eos_token": "no such piece"}, 1, 2),
    ],
)
def test_bos_and_eos_come_from_the_files_beside_a_sentencepiece_model(
    tmp_path, stories, config, bos, eos
):
    directory = train(tmp_path / "model", stories)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(directory)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


def test_tokenizer_json_beside_a_sentencepiece_model_is_taken_first(tmp_path, stories, tokenizer):
    directory = train(tmp_path / "model", stories)
    content = (tokenizer.directory / "tokenizer.json").read_bytes()
    (directory / "tokenizer.json").write_bytes(content)
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert open_tokenizer(directory).sha256 == tokenizer.sha256


def test_what_is_no_sentencepiece_model_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as tiktoken writes them
    with pytest.raises(DataError, match=r"tokenizer\.model: it is no sentencepiece model"):
        open_tokenizer(tmp_path)


def test_special_tokens_in_text_are_refused(directory, tmp_path, text_folder):
    data = Data(source=str(text_folder), special_tokens_in_text=True, val_fraction=0.2)
    with pytest.raises(RecipeError, match="sentencepiece model, which takes all text as text"):
        prepare_text(data, open_tokenizer(directory), 400, 16, tmp_path / "tokens")


def test_workers_prepare_text_with_a_sentencepiece_model(directory, text_folder, stories, tmp_path):
    tokenizer = open_tokenizer(directory)
    data = Data(source=str(text_folder), val_fraction=0.2)
    one = prepare_text(data, tokenizer, 1000, 16, tmp_path / "one", workers=0)
    two = prepare_text(data, tokenizer, 1000, 16, tmp_path / "two", workers=2, start_method="fork")
    assert one.fingerprint == two.fingerprint
    ids = one.val.ids(0, one.val.num_ids)
    assert ids[0] == 1 and ids[-1] == 2
    assert (ids == 1).sum() == one.manifest["val_documents"]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside this checkout")
@pytest.mark.parametrize("name", ["mistral_v1", "small_1k"])
def test_released_models_give_their_own_ids(tmp_path, monkeypatch, name):
    content = (SHARED / f"{name}.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content)
    own = SentencePieceProcessor(model_proto=content)
    text = (SHARED.parents[1] / "text" / "tinyshakespeare.txt").read_text()[:300_000]
    tokenizer = open_tokenizer(tmp_path)
    monkeypatch.setattr(module, "_PIECE", 10_000)
    (ids,) = encode_documents(tokenizer, [text])
    assert np.array_equal(ids, [1, *own.encode(text), 2])
    assert tokenizer.encode_batch(TEXTS) == [own.encode(text) for text in TEXTS]
