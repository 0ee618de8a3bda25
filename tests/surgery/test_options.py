"""Other selections, casts and fresh parts: on real tiny models, bit by bit."""

import hashlib
import json
import warnings

import pytest
import tiny_models
import torch
import xxhash
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inheritune.errors import RecipeError, SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import Options, inherit
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import LayerFacts
from inheritune.verification.model import verify_model

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tensors_of(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def record_of(target):
    return json.loads((target.path / "inherit.json").read_text())


def parts_of(target, reference=None):
    return {finding.part: finding for finding in verify_model(target, reference)}


# -- selections


@pytest.mark.parametrize("family", list(tiny_models.FAMILIES))
@pytest.mark.parametrize("text", ["last:2", "every:2", "first+last:1+1", "1-2"])
def test_a_selection_moves_layers_whole_and_they_compute_the_same(
    tiny_model, tmp_path, family, text
):
    reference = open_model(str(tiny_model(family)))
    kept = choose_layers(text, LayerFacts(reference.layers))
    target = inherit(reference, kept, tmp_path / "out")
    before, after = tensors_of(reference.path), tensors_of(target.path)
    prefix = reference.container.prefix
    for place, layer in enumerate(kept):
        moved = {
            n.removeprefix(f"{prefix}{layer}."): t
            for n, t in before.items()
            if n.startswith(f"{prefix}{layer}.")
        }
        assert moved
        assert all(torch.equal(after[f"{prefix}{place}.{n}"], t) for n, t in moved.items())
    assert record_of(target)["layer_map"] == list(kept)
    assert "equal the reference's" in parts_of(target, reference)["function"].text


def test_fields_that_the_class_derives_from_layer_indices_are_written_out(tiny_model, tmp_path):
    reference = tmp_path / "reference"
    tiny_models.save("smollm3", reference)
    config = json.loads((reference / "config.json").read_text())
    wanted = config.pop("layer_types"), config.pop("no_rope_layers")
    (reference / "config.json").write_text(json.dumps(config))
    target = inherit(open_model(str(reference)), [1, 3, 5], tmp_path / "out")
    assert target.config["layer_types"] == [wanted[0][i] for i in (1, 3, 5)]
    assert target.config["no_rope_layers"] == [wanted[1][i] for i in (1, 3, 5)]
    reasons = [e["reason"] for e in record_of(target)["config_edits"] if e["before"] is None]
    assert reasons == ["written out, since the class derives it from the number of a layer"] * 2


def test_moved_layers_that_scale_by_their_number_are_refused(tmp_path):
    tiny_models.save("gpt2", tmp_path / "reference")
    config = json.loads((tmp_path / "reference/config.json").read_text())
    config["scale_attn_by_inverse_layer_idx"] = True
    (tmp_path / "reference/config.json").write_text(json.dumps(config))
    reference = open_model(str(tmp_path / "reference"))
    assert inherit(reference, 2, tmp_path / "first").layers == 2
    with pytest.raises(UnsupportedModelError, match=r"layer 1 attn\.scaling would be"):
        inherit(reference, [1, 2], tmp_path / "moved")
    assert not (tmp_path / "moved").exists()


def test_moved_layers_need_the_class_check_and_a_class_that_is_known(reference, tmp_path):
    with pytest.raises(RecipeError, match="without the class check"):
        inherit(open_model(str(reference)), [1, 2], tmp_path / "out", Options(class_check=False))
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(UnsupportedModelError, match="does not know the model type unheard_of"):
        inherit(open_model(str(reference)), [1, 2], tmp_path / "out")
    assert inherit(open_model(str(reference)), 2, tmp_path / "first").layers == 2


def test_a_skipped_class_check_is_recorded(tiny_reference, tmp_path):
    target = inherit(
        open_model(str(tiny_reference)), 2, tmp_path / "out", Options(class_check=False)
    )
    assert record_of(target)["check"] == "not checked: --no-class-check"


# -- casts


@pytest.mark.parametrize("before, after", [("fp32", "bf16"), ("bf16", "fp32"), ("fp32", "fp16")])
def test_a_cast_target_holds_what_torch_casts_the_reference_to(tmp_path, before, after):
    tiny_models.save("qwen3", tmp_path / "reference", dtype=TORCH[before])
    reference = open_model(str(tmp_path / "reference"))
    target = inherit(reference, 2, tmp_path / "out", Options(dtype=after))
    held, wanted = tensors_of(target.path), tensors_of(reference.path)
    assert all(torch.equal(held[n], wanted[n].to(TORCH[after])) for n in held)
    model = AutoModelForCausalLM.from_pretrained(target.path)
    assert model.dtype == TORCH[after]
    found = parts_of(target, reference)
    assert found["bytes"].text.endswith(f"cast to {record_of(target)['dtype']}")
    assert not found["function"].proven


def test_tensors_kept_apart_in_another_dtype_are_not_cast(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    held = {n: t.to(torch.bfloat16) for n, t in held.items()}
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4) / 3
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    target = inherit(open_model(str(reference)), 2, tmp_path / "out", Options(dtype="fp16"))
    dtypes = {t.name: t.dtype for t in target.tensors.values()}
    assert dtypes.pop("model.layers.0.self_attn.rotary_emb.inv_freq") == "F32"
    assert set(dtypes.values()) == {"F16"}


def test_an_unknown_dtype_is_refused(tiny_reference, tmp_path):
    with pytest.raises(RecipeError, match="unknown dtype 'int4'"):
        inherit(open_model(str(tiny_reference)), 2, tmp_path / "out", Options(dtype="int4"))


# -- parts


FRESH = {
    "attention": {"mlp.", "post_attention_layernorm"},
    "mlp": {"self_attn.", "input_layernorm"},
    "outer-only": {"layers."},
    "layers-only": {"embed_tokens", "model.norm", "lm_head"},
}


@pytest.mark.parametrize("parts", list(FRESH))
def test_the_parts_that_are_not_inherited_are_what_the_class_makes_them(
    tiny_reference, tmp_path, parts
):
    reference = open_model(str(tiny_reference))
    target = inherit(reference, 2, tmp_path / "out", Options(parts=parts, seed=3))
    before, after = tensors_of(reference.path), tensors_of(target.path)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(target.path)
    torch.manual_seed(3)
    made = type(model)(model.config).state_dict()
    for name, tensor in after.items():
        fresh = any(mark in name for mark in FRESH[parts])
        assert torch.equal(tensor, made[name] if fresh else before[name]), name
    record = record_of(target)
    assert record["parts"] == parts and record["seed"] == 3
    assert {n for n, e in record["tensors"].items() if e["source"] is None} == set(
        record["fresh_tensors"]
    )
    assert f"{len(record['fresh_tensors'])} are fresh" in parts_of(target, reference)["bytes"].text
    assert {p.name for p in target.path.iterdir()} == {
        *(p.name for p in inherit(reference, 2, tmp_path / "plain").path.iterdir())
    }


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "olmo3", "opt", "gpt-neox", "mixtral"])
def test_attention_and_mlp_make_up_a_layer(tiny_model, tmp_path, family):
    reference = open_model(str(tiny_model(family)))
    fresh = {}
    for parts in ("attention", "mlp", "outer-only"):
        target = inherit(reference, 2, tmp_path / parts, Options(parts=parts))
        fresh[parts] = set(record_of(target)["fresh_tensors"])
        assert "complete" in record_of(target)["check"]
    assert fresh["attention"] | fresh["mlp"] == fresh["outer-only"]
    assert not fresh["attention"] & fresh["mlp"]


def test_norms_belong_to_the_part_whose_input_or_output_they_normalise(tiny_model, tmp_path):
    for family, norm, part in [
        ("llama", "post_attention_layernorm", "mlp"),
        ("gemma3", "post_attention_layernorm", "attention"),
        ("gemma3", "pre_feedforward_layernorm", "mlp"),
        ("olmo3", "post_attention_layernorm", "attention"),
        ("olmo3", "post_feedforward_layernorm", "mlp"),
        ("opt", "final_layer_norm", "mlp"),
        ("gpt2", "ln_2", "mlp"),
    ]:
        out = tmp_path / f"{family}-{norm}"
        target = inherit(open_model(str(tiny_model(family))), 2, out, Options(parts=part))
        names = [name for name in target.tensors if norm in name]
        assert names and not set(names) & set(record_of(target)["fresh_tensors"])


def test_fresh_parts_are_the_same_for_the_same_seed(tiny_reference, tmp_path):
    reference = open_model(str(tiny_reference))
    files = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        inherit(reference, 2, tmp_path / name, Options(parts="attention", seed=seed))
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_unknown_parts_are_refused(tiny_reference, tmp_path):
    with pytest.raises(RecipeError, match="unknown parts 'head'"):
        inherit(open_model(str(tiny_reference)), 2, tmp_path / "out", Options(parts="head"))


# -- digests and values


def test_every_tensor_has_the_digest_of_its_bytes(tiny_reference, tmp_path):
    reference = open_model(str(tiny_reference))
    target = inherit(reference, 2, tmp_path / "out", Options(sha256=True))
    for name, entry in record_of(target)["tensors"].items():
        tensor = target.tensors[name]
        data = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.size]
        assert entry["xxh3"] == xxhash.xxh3_128(data).hexdigest()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert parts_of(target)["digests"].proven


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_in_what_is_inherited_is_refused_and_elsewhere_is_a_warning(
    reference, tmp_path, dtype, value
):
    held = {n: t.to(dtype) for n, t in load_file(reference / "model.safetensors").items()}
    whole = {n: t.clone() for n, t in held.items()}
    held["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        inherit(open_model(str(reference)), 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    target = inherit(open_model(str(reference)), 1, tmp_path / "out")
    with pytest.warns(UserWarning, match=r"layers\.1\.mlp\.up_proj\.weight of .* it was not inher"):
        list(verify_model(target, open_model(str(reference))))
    save_file(whole, reference / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(verify_model(target, open_model(str(reference))))


def test_matrices_of_zeros_are_a_warning(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    held["model.layers.1.mlp.up_proj.weight"].zero_()
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=r"layers\.1\.mlp\.up_proj\.weight and 0 other matrices"):
        inherit(open_model(str(reference)), 2, tmp_path / "out")


# --- odd models and records ---


def test_weights_shared_out_to_layers_follow_first_layers_only(tmp_path):
    tiny_models.save_gemma3n(tmp_path / "reference")
    reference = open_model(str(tmp_path / "reference"))
    with pytest.raises(UnsupportedModelError, match="a part for each"):
        inherit(reference, [0, 2], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field, value", [("hidden_size", "abc"), ("layer_types", 7)])
def test_a_config_that_is_nonsense_is_refused_in_words_for_moved_layers_too(
    reference, tmp_path, field, value
):
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(SourceError, match="refuse"):
        inherit(open_model(str(reference)), [1, 2], tmp_path / "out")


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_out_of_range_is_refused(tiny_reference, tmp_path, seed):
    with pytest.raises(RecipeError, match="seed"):
        inherit(open_model(str(tiny_reference)), 2, tmp_path / "out", Options(seed=seed))


def test_tensors_that_the_class_has_no_use_for_are_recorded(reference, tmp_path):
    held = load_file(reference / "model.safetensors")
    held |= {f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(32) for i in range(4)}
    save_file(held, reference / "model.safetensors", {"format": "pt"})
    target = inherit(open_model(str(reference)), 2, tmp_path / "out")
    assert record_of(target)["unused_tensors"] == [
        f"model.layers.{i}.self_attn.q_proj.bias" for i in range(2)
    ]


def test_the_dtype_of_every_part_of_a_config_follows_a_cast(reference, tmp_path):
    config = json.loads((reference / "config.json").read_text())
    config |= {"torch_dtype": "float32", "vision_config": {"dtype": "float32", "other": 1}}
    (reference / "config.json").write_text(json.dumps(config))
    target = inherit(open_model(str(reference)), 2, tmp_path / "out", Options(dtype="bf16"))
    assert target.config["torch_dtype"] == "bfloat16"
    assert target.config["vision_config"] == {"dtype": "bfloat16", "other": 1}


def test_a_record_too_long_to_be_looked_through_does_not_keep_a_target_closed(
    tiny_reference, tmp_path
):
    target = inherit(open_model(str(tiny_reference)), 2, tmp_path / "out")
    record = record_of(target) | {"padding": ["x"] * 600_000}
    (target.path / "inherit.json").write_text(json.dumps(record, indent=2))
    assert open_model(str(target.path)).layers == 2
    assert parts_of(target)["digests"].proven
