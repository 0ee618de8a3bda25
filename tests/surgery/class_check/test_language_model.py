"""Every command gives one answer to the question whether a model is a language model."""

import json

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

import inheritune
from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.candidates import list_candidates, plan_cut
from inheritune.surgery.class_check.ask_class import check_whole, language_problem
from inheritune.surgery.class_check.language_model import refuse_no_language_model
from inheritune.surgery.cut import inherit
from inheritune.training.models import load_model
from inheritune.verification.model import verify_model


def save_as(model_class: str, directory, **changes):
    """A tiny Llama with tokenizer, as another class of transformers than its language model."""
    tiny_models.tiny_reference(directory)
    config = transformers.AutoConfig.from_pretrained(directory, **changes)
    torch.manual_seed(0)
    getattr(transformers, model_class)(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return save_as("LlamaModel", tmp_path_factory.mktemp("bare") / "bare")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier") / "classifier"
    return save_as("LlamaForSequenceClassification", directory, num_labels=3)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gemma3"])
def test_a_language_model_has_no_problem(tiny_model, family):
    assert language_problem(open_model(str(tiny_model(family)))) == ""


@pytest.mark.parametrize("name", ["bare", "classifier"])
def test_a_model_without_a_head_can_be_cut_and_verified_and_says_so_elsewhere(
    request, tmp_path, name
):
    model = open_model(str(request.getfixturevalue(name)))
    words = f"{name} is a Llama.* no language-model head .*lm_head.weight at random"
    for what in (refuse_no_language_model, lambda m: load_model(m.path)):
        with pytest.raises(UnsupportedModelError, match=words):
            what(model)
    target = inherit(model, 2, tmp_path / "out")
    findings = {finding.part: finding for finding in verify_model(target, model)}
    assert findings["reload"].text.endswith("outputs finite; no language-model head")
    assert findings["reload"].loader == f"transformers.{model.config['architectures'][0]}"
    assert findings["function"].proven
    assert "no language-model head" in str(list_candidates(model).problem)
    assert "no language-model head" in str(plan_cut(model, "2").table.problem)


def test_evaluate_refuses_a_model_without_a_head_before_it_reads_text(bare, tmp_path):
    with pytest.raises(UnsupportedModelError, match="no language-model head"):
        inheritune.evaluate(bare, text=tmp_path / "nothing.txt", out=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_a_bare_decoder_whose_head_is_its_embedding_is_a_language_model(tmp_path):
    bare = save_as("LlamaModel", tmp_path / "tied", tie_word_embeddings=True)
    refuse_no_language_model(open_model(str(bare)))


def test_a_language_model_that_lacks_its_head_is_not_whole(reference):
    held = load_file(reference / "model.safetensors")
    del held["lm_head.weight"]
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"is not whole: LlamaForCausalLM would draw lm_head"):
        load_model(reference)


@pytest.mark.parametrize("rows", [-1, 1])
def test_a_vocab_size_that_is_not_the_rows_of_the_embedding_is_named_with_both(reference, rows):
    config = json.loads((reference / "config.json").read_text())
    size = config["vocab_size"]
    (reference / "config.json").write_text(json.dumps(config | {"vocab_size": size + rows}))
    model = open_model(str(reference))
    words = rf"lm_head.weight is {size} x 32 in the files; .* {size + rows} x 32. Set vocab_size to"
    for what in (check_whole, refuse_no_language_model, lambda m: load_model(m.path)):
        with pytest.raises(SourceError, match=words):
            what(model)
