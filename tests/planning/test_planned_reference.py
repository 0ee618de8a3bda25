"""Planning without weights: sizes from a config.json, or from the shape of a published model."""

import json
import shutil

import pytest
import transformers

from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.model_files.shapes import class_headers, meta_model, stated_dtype, typed_config
from inheritune.planning.candidates import list_candidates, plan_cut
from inheritune.planning.planned_reference import open_to_plan
from inheritune.recipe.known_configs import known_config

# Parameters as their makers publish them, tied heads once.
PUBLISHED = {
    "open_llama_3b": 3_426_473_600,
    "open_llama_7b": 6_738_415_616,
    "Llama-2-7b-hf": 6_738_415_616,
    "open_llama_13b": 13_015_864_320,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Meta-Llama-3-8B": 8_030_261_248,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen3-0.6B-Base": 596_049_920,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen3-4B-Base": 4_022_468_096,
    "Qwen3-8B-Base": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-pt": 999_885_952,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mistral-Nemo-Base-2407": 12_247_782_400,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "phi-2": 2_779_683_840,
    "OLMo-2-0425-1B": 1_484_916_736,
    "OLMo-2-1124-7B": 7_298_617_344,
    "Olmo-3-1025-7B": 7_298_011_136,
    "SmolLM-135M": 134_515_008,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "SmolLM3-3B": 3_075_098_624,
    "TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "granite-3.1-2b-base": 2_533_531_648,
    "granite-3.1-8b-base": 8_170_848_256,
    "DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-llm-7b-base": 6_910_365_696,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
}


FAMILIES = ["llama", "llama-tied", "qwen3", "gpt2", "opt", "mixtral", "gemma3", "gpt-neox"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_gives_the_tensors_that_its_files_hold(family, tiny_model):
    held = open_model(str(tiny_model(family)))
    built = class_headers(held.config)
    assert {n: t.shape for n, t in built.tensors.items()} == {
        n: t.shape for n, t in held.tensors.items()
    }


_TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
# Models that read images: class, sections of the config beside those above.
IMAGE_TEXT = {
    "Llama4ForConditionalGeneration": (
        {"intermediate_size_mlp": 32, "num_local_experts": 2},
        {
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            **dict.fromkeys(("vision_output_dim", "projector_input_dim"), 16),
            "projector_output_dim": 16,
        },
    ),
    "MllamaForConditionalGeneration": (
        {"cross_attention_layers": [1, 3]},
        {
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
        },
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        {"depth": 1, "num_heads": 2, "out_hidden_size": 16},
    ),
    "LlavaForConditionalGeneration": (
        {"model_type": "llama"},
        {
            "model_type": "clip_vision_model",
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
}


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_a_config_names_a_class_that_also_reads_images(name, tmp_path):
    text, vision = IMAGE_TEXT[name]
    model_class = getattr(transformers, name)
    config = model_class.config_class(text_config=_TEXT | text, vision_config=_VISION | vision)
    model_class(config).save_pretrained(tmp_path)
    held = open_model(str(tmp_path))
    built = class_headers(held.config)
    assert {n: t.shape for n, t in built.tensors.items()} == {
        n: t.shape for n, t in held.tensors.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_of_a_config_alone_equals_the_plan_of_the_model(family, tiny_model, tmp_path):
    whole = tiny_model(family)
    shutil.copy(whole / "config.json", tmp_path)
    expected = list_candidates(open_model(str(whole)))
    for path in (tmp_path, tmp_path / "config.json"):
        planned = list_candidates(open_to_plan(str(path)))
        assert planned.candidates == expected.candidates
        assert "not on this machine" in planned.notes[0]
    assert expected.notes == ()


@pytest.mark.parametrize(("name", "params"), PUBLISHED.items())
def test_a_known_shape_has_the_published_number_of_parameters(name, params):
    model = meta_model(typed_config(known_config(name)))
    assert sum(weight.numel() for weight in model.parameters()) == params


def test_a_hub_model_of_a_known_shape_is_planned_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = plan_cut(open_to_plan("Qwen/Qwen3-0.6B"), "14")
    assert plan.candidate.counts.params == 596_049_920 - 14 * 15_730_944
    assert plan.table.reference == "Qwen/Qwen3-0.6B (its published shape)"
    assert plan.table.dtype == "BF16"
    assert "for the published shape of Qwen/Qwen3-0.6B." in plan.table.notes[0]


@pytest.mark.parametrize("path", ["/no/such/place/gpt2", "../gpt2", "~/gpt2", "no/such/gpt2"])
def test_a_mistyped_path_is_no_published_model(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="gpt2"):
        open_to_plan(path)


def test_tuned_models_have_the_shape_of_their_base():
    assert known_config("org/SmolLM2-135M-Instruct") == known_config("SmolLM2-135M")
    assert known_config("pythia-410m-deduped") == known_config("pythia-410m")
    assert known_config("somebody/model-Instruct") is None


def test_a_directory_without_a_config_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds neither weights"):
        open_to_plan(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nothing"}, "cannot build a nothing"),
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "llama", "hidden_size": "wide"}, "cannot build a llama"),
        ({"model_type": "llama", "hidden_act": "nonsense"}, "'nonsense' is not known"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "round"}}, "cannot build a llama"),
        ({"model_type": "llama", "pad_token_id": 10**6}, "Padding_idx"),
        ({"model_type": "llama", "num_attention_heads": 0}, "cannot build a llama"),
        ({"model_type": "gpt2", "n_layer": 10**9}, "1,000,000,000 layers"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "two stacks of layers"),
        ({"model_type": "llama", "_evil": "x"}, "unknown key"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "llama", "torch_dtype": "float8_e4m3fn"}, r"quantised \(float8_e4m3fn\)"),
        ({}, "cannot build"),
    ],
)
def test_a_config_that_gives_no_model_is_refused_with_a_reason(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=message):
        open_to_plan(str(tmp_path))


def test_a_way_to_compute_needs_no_package_to_be_planned():
    config = _TEXT | {"model_type": "llama", "_attn_implementation": "flash_attention_2"}
    assert class_headers(config).layers == 4


@pytest.mark.parametrize(
    "stated",
    [
        *({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        {"dtype": None, "torch_dtype": "bfloat16"},
        {"text_config": {"num_hidden_layers": 4, "dtype": "bfloat16"}},
    ],
)
def test_the_dtype_is_the_one_that_the_config_states(stated):
    assert stated_dtype(stated) == "BF16"
    assert stated_dtype({}) == "F32"


@pytest.mark.shared_data
def test_every_shared_config_is_planned_or_refused_with_a_reason(shared_data):
    refused = {}
    for directory in sorted((shared_data / "configs").iterdir()):
        try:
            assert list_candidates(open_to_plan(str(directory))).candidates
        except UnsupportedModelError as error:
            refused[directory.name] = str(error)
    assert sorted(refused) == ["dbrx", "deepseek-v3", "gpt-oss-20b"]


def test_ids_beyond_a_small_vocabulary_are_no_warning_of_ours(caplog, capfd):
    """GPT-2's class names 50256 for BOS and EOS, whatever the vocabulary."""
    typed_config({"model_type": "gpt2", "vocab_size": 2048})
    assert "50256" not in caplog.text + capfd.readouterr().err
