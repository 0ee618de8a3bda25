"""The class itself says whether a model directory is whole, and a cut one the same."""

import json
from functools import cache

import pytest
from safetensors.torch import load_file, save_file

from inheritune.errors import SourceError
from inheritune.model_files.directory import open_model
from inheritune.surgery.class_check import ask_class as room
from inheritune.surgery.class_check.ask_class import ask_class, check_cut, check_whole
from inheritune.surgery.plan import plan_inherit


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("INHERITUNE_CACHE", str(tmp_path / "cache"))


def check_complete(directory):
    return check_whole(open_model(str(directory))).summary


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


def test_weights_of_another_shape_are_refused(reference):
    change(reference, intermediate_size=48)
    words = r"down_proj\.weight is 32 x 64 in the files; by its config.json, .* makes it 32 x 48"
    with pytest.raises(SourceError, match=words):
        check_complete(reference)


def cut(reference, layers, **fields):
    model = open_model(str(reference))
    plan = plan_inherit(model, layers)
    return check_cut(model, plan.layer_map, plan.config | fields, plan.tensors)


def test_a_config_that_its_class_refuses_is_refused(tiny_model):
    whole = open_model(str(tiny_model("smollm3"))).config["layer_types"]
    with pytest.raises(SourceError, match="SmolLM3ForCausalLM refuses"):
        cut(tiny_model("smollm3"), 2, layer_types=whole)


@pytest.mark.parametrize(
    "family, fields, said",
    [
        ("llama", {"rms_norm_eps": 1e-3}, r"layer 0 input_layernorm\.variance_epsilon"),
        ("llama", {"num_key_value_heads": 1}, r"layer 0 self_attn\.\w+ would be"),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, r"layer 0 .* would be"),
        ("smollm3", {"no_rope_layers": [0, 0]}, r"layer \d self_attn\.use_rope would be 0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_a_layer_that_would_compute_something_else_is_refused_with_what_differs(
    tiny_model, family, fields, said
):
    with pytest.raises(SourceError, match=said):
        cut(tiny_model(family), 2, **fields)


def test_layers_that_move_may_know_their_new_place_only(tiny_model):
    for family in ("llama", "gpt2", "qwen3", "gemma3"):
        assert cut(tiny_model(family), [1, 3]).summary.startswith("complete: ")


def test_a_child_that_has_ended_is_started_again(reference):
    assert check_complete(reference) == "complete: LlamaForCausalLM"
    room._child().process.kill()
    room._child().process.wait()
    assert check_complete(reference) == "complete: LlamaForCausalLM"


def test_a_child_that_dies_over_a_question_is_reported_in_words(monkeypatch, reference):
    monkeypatch.setattr(room, "_COMMAND", ["-c", "import os; os.kill(os.getpid(), 7)"])
    monkeypatch.setattr(room, "_child", cache(room._Child))  # the one that is there stays
    with pytest.raises(SourceError, match=r"ended without an answer \(exit code -7\)"):
        check_complete(reference)


def test_a_bug_in_the_child_is_raised_as_a_bug():
    with pytest.raises(RuntimeError, match="Traceback"):
        ask_class("compare_cut", nonsense=1)


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


def test_a_class_that_comes_with_the_model_is_not_taken_for_one_of_the_same_type(reference):
    change(reference, architectures=["MyLlama"], auto_map={"AutoModelForCausalLM": "my.MyLlama"})
    assert check_complete(reference) == (
        "not checked: the class MyLlama comes with the model, and its code is not run"
    )


def test_an_architecture_that_is_no_class_falls_back_on_the_model_type(reference):
    for names in (["os"], ["__builtins__"], ["LlamaModel.x"], [], None, ["GPT2LMHeadModel"]):
        change(reference, architectures=names)
        assert check_complete(reference) == "complete: LlamaForCausalLM"
