import io
import json
import shutil

import pytest
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from inheritune.conversion import tokenizer_ids
from inheritune.conversion.convert import convert

_SENTENCES = [
    "the small model learns what the large one knew before it grew",
    "one two  three   four 1 2 3 2026 def take(first): return layers[:first]",
    "zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
] * 20


@pytest.fixture(scope="session")
def sentencepiece_model():
    """A tiny model in the manner of Llama's: byte fallback, nothing normalised."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def with_tokenizer(pickled, tmp_path):
    def write(model, tokenizer_class):
        source = pickled()
        (source / "tokenizer.model").write_bytes(model)
        settings = {"tokenizer_class": tokenizer_class}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        result = convert(source, tmp_path / "out")
        assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model
        assert not (tmp_path / "out" / "tokenizer.json").exists()
        return result

    return write


@pytest.fixture
def checked(tmp_path):
    """What the confined process answers `convert`, asked here: its imports take seconds."""

    def check(model, tokenizer_class):
        (tmp_path / "tokenizer.model").write_bytes(model)
        settings = {"tokenizer_class": tokenizer_class}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        request = {"directory": str(tmp_path)}
        return tokenizer_ids._check(request, tokenizer_ids._prepare(request))["check"]

    return check


def test_a_class_that_gives_the_same_ids_is_named(checked, sentencepiece_model):
    assert checked(sentencepiece_model, "SentencePieceBackend") == "equal: SentencePieceBackend"


def test_a_class_that_gives_others_is_a_warning_with_the_way_out(
    with_tokenizer, sentencepiece_model, tmp_path
):
    result = with_tokenizer(sentencepiece_model, "LlamaTokenizer")
    assert result.tokenizer.startswith("differs: LlamaTokenizer gives other ids")
    assert '"tokenizer_class": "SentencePieceBackend"' in result.tokenizer
    assert result.warnings == [f"tokenizer.model: {result.tokenizer}"]
    # The way out holds.
    settings = tmp_path / "out" / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "SentencePieceBackend"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=sentencepiece_model)
    for text in (*_SENTENCES[:3], "   spaces  ", "new\nlines\n\n"):
        assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text)


def test_tokenizer_model_of_another_program_is_not_checked(checked):
    said = checked(b"IQ== 0\nIg== 1\n", "LlamaTokenizer")
    assert said.startswith("not checked: it is no sentencepiece model")


def test_tokenizer_json_makes_the_comparison_unnecessary(
    pickled, tmp_path, sentencepiece_model, tiny_reference
):
    source = pickled()
    (source / "tokenizer.model").write_bytes(sentencepiece_model)
    shutil.copy(tiny_reference / "tokenizer.json", source)
    assert convert(source, tmp_path / "out").tokenizer == ""


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["mistral_v1", "small_1k"])
def test_real_sentencepiece_models(checked, shared_data, name):
    model = (shared_data / "tokenizers" / "sentencepiece" / f"{name}.model").read_bytes()
    assert "SentencePieceBackend, which gives its ids" in checked(model, "LlamaTokenizer")
