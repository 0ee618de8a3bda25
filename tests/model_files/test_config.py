"""Each config field that speaks of layers is cut by its rule, or refused."""

import json
import math

import pytest

from inheritune.errors import RecipeError, SourceError, UnsupportedModelError
from inheritune.model_files.config import cut_config, layer_count
from inheritune.model_files.layers import adapts_cut_layer, attends, layer_kinds
from inheritune.system.strict_json import MODEL_FILE, read_json_object

BASE = {"model_type": "some", "num_hidden_layers": 6}


def cut(fields, layers=3, base=BASE):
    return cut_config(base | fields, layers)[0]


@pytest.mark.parametrize(
    "field, before, after",
    [
        ("layer_types", list("abcdef"), list("abc")),
        ("mlp_layer_types", list("abcdef"), list("abc")),
        ("no_rope_layers", [1, 1, 0, 1, 1, 0], [1, 1, 0]),
        ("no_rope_layers", [], []),
        ("intermediate_size", [1, 2, 3, 4, 5, 6], [1, 2, 3]),
        ("intermediate_size", 64, 64),
        ("layer_types", list("abcdefgh"), list("abc")),
        ("hybrid_override_pattern", "M*M-*M", "M*M"),
        ("moe_layers", [0, 1, 2, 3, 4, 5], [0, 1, 2]),
        ("moe_layers", [1, 3, 5], [1]),
        ("mlp_only_layers", [], []),
        ("full_attn_idxs", [2, 5], [2]),
        ("attn_layer_indices", None, None),
        ("moe_layers_enum", "1,2,3,4,5", "1,2"),
        ("ple_layer_ids", [1, 3, 4, 6], [1, 3]),
        ("linear_attn_config", {"kda_layers": [1, 2, 4, 5], "full_attn_layers": [3, 6], "h": 2},
         {"kda_layers": [1, 2], "full_attn_layers": [3], "h": 2}),
        ("per_layer_config", {"0": {"a": 1}, "4": {"a": 2}}, {"0": {"a": 1}}),
        ("moe_layer_end_index", 5, 2),
        ("moe_layer_end_index", -1, -1),
        ("num_kv_shared_layers", 2, 0),
        ("num_kv_shared_layers", 4, 1),
        ("num_nextn_predict_layers", 1, 0),
        ("first_k_dense_replace", 4, 4),
        ("max_window_layers", 6, 6),
        ("attention_types", [[["global", "local"], 3]], [[["global", "local", "global"], 1]]),
        ("attention_types", [[["g", "l"], 1], [["a"], 4]], [[["g", "l", "a"], 1]]),
        ("n_layer", 6, 3),
        ("num_blocks", 6, 3),
        ("scale_depth", 2.0, 2.0 * math.sqrt(0.5)),
        ("anything_per_layer", [1.5] * 6, [1.5] * 3),
        ("nested", {"deeper": {"list": [None] * 6}}, {"deeper": {"list": [None] * 3}}),
        ("six_chars", "silu66", "silu66"),
        ("architectures", list("abcdef"), list("abcdef")),
        ("eos_token_id", [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        ("rope_parameters", {"short_factor": [1.0] * 6}, {"short_factor": [1.0] * 6}),
        ("vision_config", {"num_hidden_layers": 6, "x": [1] * 6},
         {"num_hidden_layers": 6, "x": [1] * 6}),
        ("other_model", {"num_layers": 6, "x": [1] * 6}, {"num_layers": 6, "x": [1] * 6}),
        ("made_up_key", {"kept": True}, {"kept": True}),
    ],
)  # fmt: skip
def test_each_field_is_cut_by_its_rule(field, before, after):
    assert cut({field: before})[field] == after


def test_lists_of_prediction_layers_are_removed():
    assert "mtp_layer_types" not in cut({"mtp_layer_types": ["a", "b"]})


def test_edits_have_reasons_and_the_original_config_stays():
    config = BASE | {"layer_types": list("abcdef"), "zz": 1}
    before = json.dumps(config)
    edited, edits = cut_config(config, 2)
    assert json.dumps(config) == before
    assert [(e.key, e.before, e.after) for e in edits] == [
        ("num_hidden_layers", 6, 2),
        ("layer_types", list("abcdef"), list("ab")),
    ]
    assert all(e.reason for e in edits)
    assert list(edited) == list(config)


def test_only_the_text_part_of_a_multimodal_config_is_edited():
    config = {
        "model_type": "gemma3",
        "text_config": {"num_hidden_layers": 6, "layer_types": list("abcdef")},
        "vision_config": {"num_hidden_layers": 6, "list": [1] * 6},
        "six": [1] * 6,
    }
    edited, edits = cut_config(config, 2)
    assert layer_count(config) == 6
    assert edited["text_config"] == {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    assert edited["vision_config"] == config["vision_config"]
    assert edited["six"] == [1] * 6
    assert [e.key for e in edits] == ["text_config.num_hidden_layers", "text_config.layer_types"]


def test_text_fields_repeated_at_the_top_are_edited_too():
    config = {"num_hidden_layers": 6, "text_config": {"num_hidden_layers": 6}}
    edited, _ = cut_config(config, 2)
    assert edited == {"num_hidden_layers": 2, "text_config": {"num_hidden_layers": 2}}


def test_longcat_counts_two_hidden_layers_for_each_layer():
    config = {"model_type": "longcat_flash", "num_layers": 6, "num_hidden_layers": 12}
    edited, _ = cut_config(config, 2)
    assert (edited["num_layers"], edited["num_hidden_layers"]) == (2, 4)


def test_all_layers_mean_no_edit():
    config = BASE | {"layer_types": list("abcdef"), "some_layer_ids": [0, 4], "scale_depth": 1.4}
    assert cut_config(config, 6) == (config, [])


@pytest.mark.parametrize("value", [[0, 2, 4], {"0": "a", "3": "b"}])
def test_a_field_that_speaks_of_layers_without_a_rule_is_refused(value):
    with pytest.raises(UnsupportedModelError, match="special_layer_set"):
        cut({"special_layer_set": value})


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"model_type": "minimax"}, "decay"),
        ({"model_type": "gpt_neox_japanese"}, "bias"),
        ({"model_type": "gemma3n_text"}, "num_kv_shared_layers"),
        ({"model_type": "olmo_hybrid"}, "layer_types"),
        ({"model_type": "gemma4_text", "layer_types": ["s", "full_attention"] * 3}, "2, 4, 6"),
        ({"layer_types": list("abc")}, "3 entries for 6 layers"),
        ({"vision_config": {"deepstack_visual_indexes": [5, 11, 17, 20]}}, "at least 4"),
    ],
)
def test_layer_counts_that_no_edit_can_keep_are_refused(fields, match):
    with pytest.raises(UnsupportedModelError, match=match):
        cut(fields)
    cut({**fields, "layer_types": ["full_attention"] * 6}, layers=6)


@pytest.mark.parametrize("layers", [0, -1, 7])
def test_layers_out_of_range_are_refused(layers):
    with pytest.raises(RecipeError, match="between 1 and 6"):
        cut({}, layers)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_hidden_layers": "6"},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -3},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 6, "n_layer": 5},
    ],
)
def test_a_config_without_one_sane_count_is_refused(config):
    with pytest.raises(SourceError, match=r"config\.json gives"):
        layer_count(config)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_every_name_of_the_count_is_known(key):
    assert layer_count({key: 6}) == 6
    assert cut_config({key: 6}, 2)[0] == {key: 2}


@pytest.mark.shared_data
def test_every_config_at_hand_is_cut_or_refused_with_a_reason(shared_data):
    refused = {}
    for path in sorted((shared_data / "configs").glob("*/config.json")):
        config = read_json_object(path, MODEL_FILE, "the config")
        total = layer_count(config)
        for layers in {1, (total + 1) // 2, total}:
            try:
                edited, edits = cut_config(config, layers)
            except UnsupportedModelError as error:
                refused[path.parent.name, layers] = error.hint
                continue
            assert layer_count(edited) == layers
            assert layers < total or {e.key for e in edits} <= {"num_nextn_predict_layers"}
    assert refused == {
        ("ipex-jamba", 1): "Choose at least the first 3 layers.",
        ("ipex-jamba", 2): "Choose at least the first 3 layers.",
        ("recurrent_gemma", 1): "Choose at least the first 3 layers.",
        ("rwkv", 1): "Choose at least 2 layers.",
        ("zamba2", 1): "Choose at least the first 7 layers.",
    }


HYBRID = ["linear_attention", "conv", "full_attention", "moe", "sliding_attention", "conv"]


@pytest.mark.parametrize(
    "fields, first",
    [
        ({"layer_types": HYBRID}, 2),
        ({"layers_block_type": ["mamba", "mlp", "mamba", "hybrid", "mamba", "hybrid"]}, 3),
        ({"hybrid_override_pattern": "M-M*-M"}, 3),
        ({"block_types": ["recurrent", "recurrent", "attention"]}, 2),
        ({"attn_layer_indices": [1, 4]}, 1),
        ({"full_attn_idxs": [2, 5]}, 2),
        ({"attn_layer_period": 4, "attn_layer_offset": 2}, 2),
        ({"full_attention_interval": 4}, 3),
        ({"layer_group_size": 3}, 2),
        ({"linear_attn_config": {"kda_layers": [1, 2, 3, 5], "full_attn_layers": [4, 6]}}, 3),
    ],
)
def test_a_hybrid_keeps_a_layer_of_attention(fields, first):
    kinds = layer_kinds(BASE | fields, 6)
    assert [attends(kind) for kind in kinds].index(True) == first
    hint = f"the first {first + 1} layers"
    for layers in range(1, first + 1):
        with pytest.raises(UnsupportedModelError, match="with attention") as caught:
            cut(fields, layers)
        assert hint in caught.value.hint
    cut(fields, first + 1)


def test_zamba_keeps_two_of_its_shared_layers():
    fields = {"model_type": "zamba", "layers_block_type": ["mamba", "hybrid"] * 3}
    with pytest.raises(UnsupportedModelError, match="needs 2 layers with attention"):
        cut(fields, 3)
    cut(fields, 4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layer_types": None},
        {"layer_types": ["linear_attention"] * 6},
        {"model_type": "zamba", "attn_layer_period": 6, "attn_layer_offset": 4},
    ],
)
def test_a_config_that_names_no_attention_can_be_cut_anywhere(fields):
    cut(fields, 1)


def test_beam_can_be_cut_anywhere_when_its_kinds_are_written_out():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    assert cut({"model_type": "beam", "layer_types": kinds}, 2)["layer_types"] == kinds[:2]
    with pytest.raises(UnsupportedModelError, match="counts from the end"):
        cut({"model_type": "beam"}, 2)


def test_rwkv_keeps_two_layers():
    with pytest.raises(UnsupportedModelError, match="one less than the number of layers"):
        cut({"model_type": "rwkv"}, 1)
    cut({"model_type": "rwkv"}, 2)


ZAMBA2 = {"model_type": "zamba2", "layers_block_type": ["mamba", "hybrid", "hybrid"] * 2}


@pytest.mark.parametrize("kept, left", [(2, [0]), (3, [0, 1]), (5, [0, 1, 2]), (6, [0, 1, 2, 3])])
def test_adapters_of_a_shared_layer_stay_for_the_places_that_are_kept(kept, left):
    def cut_off(name):
        return adapts_cut_layer(name, BASE | ZAMBA2, 6, range(kept))

    list_name = "model.layers.1.shared_transformer.feed_forward.gate_up_proj_adapter_list"
    assert [i for i in range(4) if not cut_off(f"{list_name}.{i}.0.weight")] == left
    assert not cut_off("model.layers.1.shared_transformer.self_attn.q_proj.weight")
    assert not adapts_cut_layer(f"{list_name}.3.0.weight", BASE, 6, [0])


def test_zamba2_keeps_first_layers_only():
    with pytest.raises(UnsupportedModelError, match="by their places"):
        cut(ZAMBA2, [1, 2])
    assert cut(ZAMBA2, 2)["layers_block_type"] == ["mamba", "hybrid"]
