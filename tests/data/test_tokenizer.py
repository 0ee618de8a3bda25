import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from inheritune.data import tokenizer as module
from inheritune.data.tokenizer import (
    END_OF_TEXT,
    embedding_rows,
    encode_documents,
    open_tokenizer,
    train_tokenizer,
)
from inheritune.errors import DataError, SourceError

TRAIN = """
import sys
from pathlib import Path
from inheritune.data.tokenizer import train_tokenizer
texts = [f"def f{i}(x):\\n    return x + {i}  # ünïcode\\n" for i in range(200)]
train_tokenizer(texts, 400, Path(sys.argv[1]))
"""


def llama_style(tokenizer, directory, **config):
    """A copy whose template puts BOS first, as Llama's does."""
    content = json.loads((tokenizer.directory / "tokenizer.json").read_text())
    bos = {"id": END_OF_TEXT, "type_id": 0}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": bos},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    special = {"bos_token": END_OF_TEXT, "eos_token": {"content": END_OF_TEXT}}
    (directory / "tokenizer_config.json").write_text(json.dumps(special | config))
    return open_tokenizer(directory)


def test_every_text_comes_back(tokenizer):
    texts = ["the of and", " leading", "tabs\tand\nlines\r\n", "ünïcödé 漢字 🙂", "", "\x01"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_the_special_token_is_first_and_ends_every_document(tokenizer):
    assert (tokenizer.bos, tokenizer.eos, tokenizer.rows) == (None, 0, 300)
    (ids,) = encode_documents(tokenizer, ["the of"])
    assert ids.tolist() == [*tokenizer.encode_batch(["the of"])[0], 0]


def test_transformers_loads_a_trained_tokenizer_and_agrees_with_it(tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer.directory)
    text = "the of and\n  something else 🙂"
    assert theirs(text)["input_ids"] == tokenizer.encode_batch([text])[0]
    assert (theirs.eos_token_id, theirs.bos_token_id, len(theirs)) == (0, 0, 300)


@pytest.mark.parametrize("name", ["tiktoken.model", "tekken.json", "rwkv_vocab_v20230424.txt"])
def test_a_tokenizer_that_only_a_class_in_python_reads_is_called_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"IQ== 0\n")
    with pytest.raises(DataError, match=rf"the tokenizer of .* is {name}; only tokenizer.json"):
        open_tokenizer(tmp_path)


def test_training_gives_the_same_bytes_in_another_process_with_other_threads(tmp_path):
    for name, threads in (("a", "1"), ("b", "3")):
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(tmp_path / name)],
            check=True,
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
        )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_bos_is_put_where_the_template_puts_it_and_nothing_is_cut(tokenizer, tmp_path):
    with_bos = llama_style(tokenizer, tmp_path / "llama")
    assert (with_bos.bos, with_bos.eos) == (0, 0)
    text = "the of and a to in he have it"
    (ids,) = encode_documents(with_bos, [text])
    assert ids.tolist() == [0, *tokenizer.encode_batch([text])[0], 0]


@pytest.mark.parametrize(("said", "bos"), [(True, 0), (False, None)])
def test_add_bos_token_overrules_the_template(tokenizer, tmp_path, said, bos):
    assert llama_style(tokenizer, tmp_path / "llama", add_bos_token=said).bos == bos


def test_eos_is_found_in_config_json_when_the_tokenizer_names_none(tokenizer, tmp_path):
    content = (tokenizer.directory / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="names no end-of-text token"):
        open_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 8]}')
    assert open_tokenizer(tmp_path).eos == 7
    (tmp_path / "config.json").write_text('{"eos_token_id": 300}')
    with pytest.raises(DataError, match="names no end-of-text token"):
        open_tokenizer(tmp_path)


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json in"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError, match=r"cannot read .*tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_a_broken_tokenizer_config_is_named(tokenizer, tmp_path):
    content = (tokenizer.directory / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    for broken in ("[]", "{", "\xff"):
        (tmp_path / "tokenizer_config.json").write_bytes(broken.encode("latin-1"))
        with pytest.raises(DataError, match=r"tokenizer_config\.json"):
            open_tokenizer(tmp_path)


def test_a_long_document_in_pieces_has_the_ids_of_the_whole(tokenizer, monkeypatch):
    text = "the of\n\nand a\r\nto in  \n  he have\nit that\n\n\n for they\nwith as not\n" * 40
    whole = next(encode_documents(tokenizer, [text]))
    for length in (40, 100, 1000):
        monkeypatch.setattr(module, "_PIECE", length)
        short, pieces = encode_documents(tokenizer, ["the of", text])
        assert np.array_equal(pieces, whole)
        assert short.tolist() == [*tokenizer.encode_batch(["the of"])[0], 0]


def test_pieces_join_to_the_text_even_where_no_good_place_is_found():
    for text in ("a" * 1000, "\n" * 1000, "a\n" * 500, " \n" * 500, "x" * 99 + "\n\n" + "y" * 99):
        pieces = list(module._pieces(text, 64))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 64


def test_more_rows_are_asked_for_than_the_text_gives(tmp_path):
    train_tokenizer(["ab"], 5000, tmp_path)
    assert open_tokenizer(tmp_path).rows < 5000
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.token_to_id(END_OF_TEXT) == 0


@pytest.mark.parametrize("rows", ["many", None, 0, -5, True, 1.5, [3], 2**32])
def test_rows_of_an_embedding_that_are_no_number_are_refused(rows, tokenizer, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}))
    with pytest.raises(SourceError, match="which is no number of rows"):
        embedding_rows(tmp_path, tokenizer)
