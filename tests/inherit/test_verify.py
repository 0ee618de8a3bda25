"""The class itself says whether a model directory is whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune.errors import SourceError
from inheritune.inherit.verify import check_complete


def change(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "opt", "gemma3", "mixtral"])
def test_a_whole_model_is_complete(tiny_model, family):
    assert check_complete(tiny_model(family)).startswith("complete: ")


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.norm.weight",
                                  "model.layers.2.mlp.up_proj.weight"])  # fmt: skip
def test_a_lost_weight_is_named(reference, lost):
    held = load_file(reference / "model.safetensors")
    del held[lost]
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=f"at random, such as {lost}"):
        check_complete(reference)


def test_more_layers_in_the_config_than_in_the_weights_are_refused(reference):
    change(reference, num_hidden_layers=5)
    with pytest.raises(SourceError, match=r"9 weights at random, such as model\.layers\.4\."):
        check_complete(reference)


def test_weights_of_another_shape_are_refused(reference):
    change(reference, intermediate_size=48)
    with pytest.raises(SourceError, match="LlamaForCausalLM refuses the model"):
        check_complete(reference)


def test_a_config_that_its_class_refuses_is_refused(tiny_model, tmp_path):
    import shutil

    copy = shutil.copytree(tiny_model("smollm3"), tmp_path / "copy")
    change(copy, num_hidden_layers=2)
    with pytest.raises(SourceError, match="SmolLM3ForCausalLM refuses"):
        check_complete(copy)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"model_type": "unheard_of"}, "transformers does not know the model type unheard_of"),
        ({"model_type": None}, "config.json names no model_type"),
        (
            {"model_type": "vit", "architectures": ["X"]},
            "transformers has no causal language model of type vit",
        ),
    ],
)
def test_a_class_that_is_not_there_is_not_checked_and_says_so(reference, fields, reason):
    change(reference, **fields)
    assert check_complete(reference) == f"not checked: {reason}"


def test_an_architecture_that_is_no_class_falls_back_on_the_model_type(reference):
    for names in (["os"], ["__builtins__"], ["LlamaModel.x"], [], None, ["GPT2LMHeadModel"]):
        change(reference, architectures=names)
        assert check_complete(reference) == "complete: LlamaForCausalLM"


def test_the_check_leaves_transformers_as_talkative_as_it_was(reference):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    check_complete(reference)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert torch.get_default_dtype() == torch.float32
