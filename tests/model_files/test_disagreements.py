"""Where config, weight index and weights disagree, what the model's class needs decides."""

import json
import warnings

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.planned_reference import open_to_plan
from inheritune.surgery.cut import inherit

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(directory, change):
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, {"format": "pt"})


def refused(directory, match, kind=SourceError):
    """Open and plan: both say the same."""
    said = []
    for opened in (open_model, open_to_plan):
        with pytest.raises(kind, match=match) as error:
            opened(str(directory))
        said.append(str(error.value))
    assert said[0] == said[1]
    return said[0]


# --- quantised by the config's word only ---

LEFTOVER = {"quant_method": "bitsandbytes", "_load_in_4bit": True, "load_in_4bit": True}


def test_plain_weights_are_not_quantised_by_the_config_s_word(reference, tmp_path):
    change_config(reference, quantization_config=LEFTOVER, torch_dtype="float8_e4m3fn")
    with pytest.warns(UserWarning, match="but they are not: quantization_config is left out"):
        model = open_model(str(reference))
        inherit(model, 2, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert type(model.load(dtype=torch.float32)).__name__ == "LlamaForCausalLM"


def test_a_leftover_of_the_text_part_is_left_out_too(reference):
    change_config(reference, text_config={"quantization_config": LEFTOVER, "num_hidden_layers": 4})
    with pytest.warns(UserWarning, match="text_config.quantization_config is left out"):
        config = open_model(str(reference)).config
    assert config["text_config"] == {"num_hidden_layers": 4}


def test_what_a_class_quantises_itself_is_kept(reference):
    own = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    change_config(reference, quantization_config=own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_model(str(reference)).config["quantization_config"] == own


def test_a_quantised_model_is_called_so_before_its_keys_are_judged(reference):
    change_config(reference, quantization_config=LEFTOVER)
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(reference, lambda w: w | {name: torch.ones(8, 1, dtype=torch.uint8)})
    refused(reference, f"is quantised \\({name} of U8\\)", UnsupportedModelError)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint32])
def test_a_matrix_of_integers_is_quantised_without_a_word_in_the_config(reference, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(reference, lambda w: w | {name: torch.ones(64, 32).to(dtype)})
    refused(reference, "is quantised", UnsupportedModelError)


def test_mlx_is_answered_with_its_own_command(reference):
    def change(held):
        name = "model.layers.0.mlp.up_proj"
        packed = torch.ones(64, 4, dtype=torch.int32).view(torch.uint32)
        grid = {f"{name}.scales": torch.ones(64, 1), f"{name}.biases": torch.ones(64, 1)}
        return held | {f"{name}.weight": packed} | grid

    change_weights(reference, change)
    assert f"mlx_lm.convert --hf-path {reference} -d" in refused(reference, "is quantised")


def test_masks_of_integers_are_no_quantisation(tiny_model, tmp_path):
    directory = tiny_models.save("gpt2", tmp_path / "gpt2")
    mask = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    change_weights(directory, lambda w: w | {"transformer.h.0.attn.bias": mask})
    assert open_model(str(directory)).layers == 4


# --- index and files ---


def sharded(directory, extra=(), names=(), first=()):
    """Spread a model's weights over two files; add tensors to them, and names to the index."""
    held = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    keys = sorted(held)
    parts = [dict.fromkeys(keys[:20]), dict.fromkeys(keys[20:])]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    place = {key: file for part, file in zip(parts, files, strict=True) for key in part}
    for part, file, more in zip(parts, files, (dict(first), dict(extra)), strict=True):
        tensors = {key: held[key].clone() for key in part} | more
        save_file(tensors, directory / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": place | dict(names)}
    (directory / INDEX).write_text(json.dumps(index))
    return held


def test_a_tensor_that_the_index_does_not_name_is_not_there(reference, tmp_path):
    sharded(reference, extra={"model.rotary_emb.inv_freq": torch.ones(4)})
    with pytest.warns(UserWarning, match="does not name model.rotary_emb.inv_freq"):
        model = open_model(str(reference))
    assert "model.rotary_emb.inv_freq" not in model.tensors
    inherit(model, 2, tmp_path / "out")


def test_a_name_without_a_tensor_matters_if_the_class_needs_it(reference, tmp_path):
    held = sharded(reference, names={"lm_head.bias": "model-00001-of-00002.safetensors"})
    with pytest.warns(UserWarning, match=r"names lm_head.bias, which no file holds"):
        inherit(open_model(str(reference)), 2, tmp_path / "out")
    first = reference / "model-00001-of-00002.safetensors"
    rest = [name for name in load_file(first) if name != "lm_head.weight"]
    save_file({name: held[name] for name in rest}, first)
    with pytest.warns(UserWarning, match="names"), pytest.raises(SourceError, match="random"):
        inherit(open_model(str(reference)), 2, tmp_path / "none")


def test_the_index_chooses_among_equal_copies_and_different_ones_are_refused(reference):
    copy = load_file(reference / WEIGHTS)["lm_head.weight"]
    sharded(reference, extra={"lm_head.weight": copy})
    assert open_model(str(reference)).tensors["lm_head.weight"].file.name.startswith("model-00001")
    second = reference / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"lm_head.weight": copy + 1}, second, {"format": "pt"})
    refused(reference, "is in two files, .* with different values")


def test_a_tensor_in_another_file_than_the_index_says_is_found(reference):
    sharded(reference, names={"lm_head.weight": "model-00002-of-00002.safetensors"})
    with pytest.warns(UserWarning, match="names another file for lm_head.weight"):
        model = open_model(str(reference))
    assert model.tensors["lm_head.weight"].file.name == "model-00001-of-00002.safetensors"


def test_a_path_of_this_directory_is_a_plain_name(reference):
    sharded(reference)
    index = json.loads((reference / INDEX).read_text())
    index["weight_map"] = {k: f"./{v}" for k, v in index["weight_map"].items()}
    (reference / INDEX).write_text(json.dumps(index))
    assert open_model(str(reference)).layers == 4


# --- the number of layers ---


def test_a_depth_that_the_class_has_by_itself_is_written_out(reference, tmp_path):
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**text),
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    written = json.loads((tmp_path / "llava/config.json").read_text())
    assert written["text_config"].pop("num_hidden_layers") == 32
    (tmp_path / "llava/config.json").write_text(json.dumps(written))
    model = open_model(str(tmp_path / "llava"))
    assert model.layers == 32
    target = inherit(model, 2, tmp_path / "out")
    assert target.config["text_config"]["num_hidden_layers"] == 2


@pytest.mark.parametrize("value", ["4", 4.0])
def test_a_depth_that_is_no_integer_is_told_by_its_key(reference, value):
    change_config(reference, num_hidden_layers=value)
    assert "num_hidden_layers: 12" in refused(reference, f"num_hidden_layers as {value!r}")


def test_an_unknown_class_s_depth_is_asked_for_by_name(reference):
    config = {"model_type": "unknown", "decoder_layers": 4}
    (reference / "config.json").write_text(json.dumps(config))
    assert "is it decoder_layers?" in refused(reference, "gives no number of layers")
    change_config(reference, num_transformer_layers=4)
    assert open_model(str(reference)).layers == 4


def test_an_encoder_decoder_is_called_so(reference):
    config = {"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {}}
    (reference / "config.json").write_text(json.dumps(config))
    refused(reference, "an encoder and a decoder have a config each", UnsupportedModelError)


def test_a_list_that_is_longer_than_the_depth_is_cut_before_the_class_sees_it(tmp_path):
    directory = tiny_models.save("qwen3", tmp_path / "qwen3")
    config = json.loads((directory / "config.json").read_text())
    change_config(directory, layer_types=config["layer_types"] * 7)
    target = inherit(open_model(str(directory)), 2, tmp_path / "out")
    assert target.config["layer_types"] == config["layer_types"][:2]
    inherit(open_model(str(directory)), "last:2", tmp_path / "last")


# --- names ---


@pytest.mark.parametrize(
    ("rename", "what"),
    [
        (lambda n: f"_orig_mod.{n}", r"_orig_mod \(torch.compile\)"),
        (lambda n: f"module.{n}", r"module. \(DataParallel or DeepSpeed\)"),
        (lambda n: n.replace(".layers.", "._fsdp_wrapped_module.layers."), r"\(FSDP\)"),
        (lambda n: f"base_model.model.{n}", r"base_model.model. \(PEFT\)"),
        (lambda n: n.replace("q_proj.", "q_proj.base_layer."), "adapter is not merged"),
    ],
)
def test_names_of_wrappers_are_called_by_the_wrapper(reference, rename, what):
    change_weights(reference, lambda held: {rename(name): w for name, w in held.items()})
    refused(reference, what, UnsupportedModelError)


def test_names_that_no_class_knows_are_shown_beside_the_missing_ones(reference, tmp_path):
    change_weights(reference, lambda held: {f"net.{name}": w for name, w in held.items()})
    with pytest.raises(SourceError, match="would fill") as refused:
        inherit(open_model(str(reference)), 2, tmp_path / "out")
    assert "It holds other names, such as net." in refused.value.hint


@pytest.mark.parametrize("prefix", ["medusa_head.", "draft.layers."])
def test_a_draft_beside_the_layers_is_unused_and_no_second_stack(reference, tmp_path, prefix):
    more = {f"{prefix}{i}.0.weight": torch.ones(2, 2) for i in range(4)}
    change_weights(reference, lambda held: held | more)
    inherit(open_model(str(reference)), 2, tmp_path / "out")
    record = json.loads((tmp_path / "out/inherit.json").read_text())
    assert record["unused_tensors"] == sorted(more)


# --- JSON ---


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        (b"\xef\xbb\xbf{}", "without a byte order mark"),
        (b'{"a": 1, "a": 1}', "Delete one of the two"),
        (b'{"a": NaN}', "Write null in its place"),
    ],
)
def test_a_broken_config_is_answered_with_what_mends_it(reference, text, way_out):
    (reference / "config.json").write_bytes(text)
    assert way_out in refused(reference, "is not valid JSON")
