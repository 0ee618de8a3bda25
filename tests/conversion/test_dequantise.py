"""Weights computed from quantised ones equal the published formulas, and the libraries' own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from inheritune import api
from inheritune.conversion.dequantise import dequantised
from inheritune.conversion.stored_values import as_float32
from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.model_files.safetensors import read_header

WEIGHTS = "model.safetensors"
PROJECTION = "model.layers.0.mlp.up_proj"  # (64, 32)


def change(directory, quantise, only=".layers.", **config):
    """Replace the matrices of the layers by what ``quantise`` gives: tensors by end of name."""
    held, expected = load_file(directory / WEIGHTS), {}
    for name in [n for n, w in held.items() if only in n and w.ndim == 2]:
        parts, expected[name] = quantise(held.pop(name))
        held |= {name.removesuffix(".weight") + end: part for end, part in parts.items()}
    save_file(held, directory / WEIGHTS, {"format": "pt"})
    path = directory / "config.json"
    written = json.loads(path.read_text()) | {"dtype": "bfloat16"} | config
    path.write_text(json.dumps(written))
    return expected


def block_fp8(height, width, scale_dtype=torch.float32):
    """Quantise to float8, with a scale for each block: w = q s."""

    def quantise(w):
        rows, columns = w.shape
        down, across = -(-rows // height), -(-columns // width)
        scale = torch.rand(down, across).to(scale_dtype) + 0.5
        spread = scale.float().repeat_interleave(height, 0)[:rows]
        spread = spread.repeat_interleave(width, 1)[:, :columns]
        q = (w / spread).to(torch.float8_e4m3fn)
        return {".weight": q, ".weight_scale_inv": scale}, (q.float() * spread).bfloat16()

    return quantise


def row_fp8(w):
    """Quantise to float8, with a scale for each row, as compressed-tensors does."""
    scale = torch.rand(len(w), 1) + 0.5
    q = (w / scale).to(torch.float8_e4m3fn)
    parts = {".weight": q, ".weight_scale": scale, ".input_scale": torch.ones(1)}
    return parts, (q.float() * scale).bfloat16()


def int8(w):
    """Quantise as bitsandbytes does: w = q s / 127."""
    scale = w.abs().amax(1)
    q = (w / scale[:, None] * 127).round().to(torch.int8)
    parts = {".weight": q, ".SCB": scale, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, (q * scale[:, None] * 7.874015718698502e-3).bfloat16()


def packed(w, size=16):
    """Quantise as compressed-tensors does: 4 bits around zero, a scale for 16 columns."""
    rows, columns = w.shape
    scale = w.reshape(rows, -1, size).abs().amax(-1).bfloat16() / 7
    spread = scale.float().repeat_interleave(size, 1)
    q = (w / spread).round().clamp(-8, 7)
    codes = (q + 8).to(torch.int64).reshape(rows, -1, 8)
    words = sum(codes[..., i] << 4 * i for i in range(8))
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    parts = {".weight_packed": words, ".weight_scale": scale}
    return parts | {".weight_shape": torch.tensor([rows, columns])}, (q * spread).bfloat16()


NF4 = torch.linspace(-1, 1, 16) ** 3  # any 16 values do: they are stored beside the weights


def four_bits(nested, size=64, inner=256):
    """Quantise as bitsandbytes does: w = code[q] absmax, perhaps with absmax quantised too."""

    def quantise(w):
        flat = w.reshape(-1)
        absmax = flat.reshape(-1, size).abs().amax(1)
        state = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16"}
        state["shape"] = list(w.shape)
        parts = {".weight.quant_map": NF4.clone(), ".weight.absmax": absmax}
        if nested:
            code = torch.linspace(-1, 1, 256)
            offset = absmax.mean().item()
            outer = (absmax - offset).abs().amax().reshape(1)
            q = ((absmax - offset) / outer * 127.5 + 127.5).round().to(torch.uint8)
            absmax = code[q.long()] * outer + offset
            state |= {"nested_blocksize": inner, "nested_dtype": "float32", "nested_offset": offset}
            parts |= {".weight.absmax": q, ".weight.nested_absmax": outer}
            parts[".weight.nested_quant_map"] = code
        codes = (flat.reshape(-1, size) / absmax[:, None]).reshape(-1, 1) - NF4
        codes = codes.abs().argmin(1).to(torch.uint8)
        parts[".weight"] = (codes[::2] << 4 | codes[1::2]).reshape(-1, 1)
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        parts[".weight.quant_state.bitsandbytes__nf4"] = text
        expected = NF4[codes.long()].reshape(-1, size) * absmax[:, None]
        return parts, expected.reshape(w.shape).bfloat16()

    return quantise


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 24]}
CASES = {
    "fp8 in blocks": (block_fp8(16, 24), {"quantization_config": FP8}),
    "fp8 in blocks, stated by the grid": (block_fp8(16, 16), {}),
    "fp8 with bf16 scales": (
        block_fp8(32, 32, torch.bfloat16),
        {"quantization_config": FP8 | {"weight_block_size": [32, 32]}},
    ),
    "fp8 by rows": (row_fp8, {"quantization_config": {"quant_method": "compressed-tensors"}}),
    "packed 4 bits": (packed, {"quantization_config": {"quant_method": "compressed-tensors"}}),
    "bitsandbytes 8-bit": (int8, {"quantization_config": {"_load_in_8bit": True}}),
    "bitsandbytes 4-bit": (four_bits(False), {"quantization_config": {"_load_in_4bit": True}}),
    "bitsandbytes 4-bit, nested": (four_bits(True), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quantised_model_is_sent_to_convert_which_computes_its_weights(reference, tmp_path, case):
    quantise, config = CASES[case]
    plain = load_file(reference / WEIGHTS)
    expected = change(reference, quantise, **config)
    with pytest.raises(UnsupportedModelError, match="is quantised") as refused:
        open_model(str(reference))
    assert f"`inheritune convert {reference} OUT`" in refused.value.hint
    done = api.convert(reference, tmp_path / "out", progress=False)
    assert done.check == "complete: LlamaForCausalLM"
    held = load_file(tmp_path / "out" / WEIGHTS)
    assert held.keys() == plain.keys() and len(expected) == 28
    for name, weight in held.items():
        assert torch.equal(weight, expected.get(name, plain[name])), name
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in written and written["dtype"] == "bfloat16"
    record = json.loads((tmp_path / "out/convert.json").read_text())
    assert record["quantisation"]["summary"] == str(done.quantisation)
    assert "the quantised model is the reference now" in done.warnings[0]
    assert open_model(str(tmp_path / "out")).load().dtype == torch.bfloat16


def test_a_dtype_is_that_of_the_computed_weights(reference, tmp_path):
    change(reference, block_fp8(16, 16))
    api.convert(reference, tmp_path / "out", dtype="fp32", progress=False)
    held = load_file(tmp_path / "out" / WEIGHTS)
    before = load_file(reference / WEIGHTS)
    q, scale = (before[f"{PROJECTION}.weight{end}"] for end in ("", "_scale_inv"))
    spread = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert torch.equal(held[f"{PROJECTION}.weight"], q.float() * spread)


@pytest.mark.parametrize("layers", ["2", "last:2"])
def test_only_kept_layers_are_computed(reference, tmp_path, layers):
    expected = change(reference, block_fp8(16, 16))
    done = api.convert(reference, tmp_path / "out", layers=layers, progress=False)
    assert done.model.layers == 2
    first = 0 if layers == "2" else 2
    held = load_file(tmp_path / "out" / WEIGHTS)
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer in range(2):
        assert torch.equal(held[name.format(layer)], expected[name.format(first + layer)])


def test_a_part_that_is_missing_is_named_before_anything_is_written(reference, tmp_path):
    change(reference, block_fp8(16, 16))
    held = load_file(reference / WEIGHTS)
    del held[f"{PROJECTION}.weight_scale_inv"]
    save_file(held, reference / WEIGHTS, {"format": "pt"})
    with pytest.raises(SourceError, match=f"{PROJECTION}.weight is of F8_E4M3, without"):
        api.convert(reference, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_way_that_is_not_read_is_refused_without_a_circle(reference, tmp_path):
    def gptq(w):
        return {".qweight": torch.ones(4, 4, dtype=torch.int32), ".scales": torch.ones(1, 4)}, w

    change(reference, gptq)
    for attempt in (
        lambda: open_model(str(reference)),
        lambda: api.convert(reference, tmp_path / "out", progress=False),
    ):
        with pytest.raises(UnsupportedModelError, match="qweight") as refused:
            attempt()
        assert "weights it was made from" in refused.value.hint
        assert "convert" not in refused.value.hint


# --- against the libraries ---


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.float8_e8m0fnu, "F8_E8M0"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
    ],
)
def test_every_byte_is_decoded_as_torch_does(dtype, name):
    codes = torch.arange(256, dtype=torch.uint8)
    ours = as_float32(codes.numpy().tobytes(), name)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, codes.view(dtype).float().numpy(), equal_nan=True)


def one(tmp_path, tensors, config=None):
    """The values of the only weight that these tensors stand for."""
    save_file(tensors, tmp_path / "one.safetensors")
    headers = {t.name: t for t in read_header(tmp_path / "one.safetensors")[0]}
    (weight,) = dequantised(headers, config or {})
    values = np.concatenate([part.reshape(-1) for part in weight.values()])
    return torch.from_numpy(values).reshape(weight.shape)


def test_fp8_is_what_transformers_computes(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    q, scale = torch.randn(64, 96).to(torch.float8_e4m3fn), torch.rand(4, 3)
    ours = one(tmp_path, {"w.weight": q, "w.weight_scale_inv": scale})
    theirs = Fp8Dequantize(None)._dequantize_one(q, scale, torch.bfloat16)
    assert torch.equal(ours.bfloat16(), theirs)


GROUPS = {"group_0": {"weights": {"num_bits": 8, "block_structure": [128, 128]}}}


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"config_groups": GROUPS}},
        {"compression_config": {"config_groups": GROUPS}},
        {"compression_config": {"weight_block_size": [128, 128]}},
        {
            "quantization_config": {
                "config_groups": {"a": {"weights": {"block_structure": "128x128"}}}
            }
        },
    ],
)
def test_the_config_says_how_large_the_blocks_are(tmp_path, config):
    q, scale = torch.ones(192, 256).to(torch.float8_e4m3fn), torch.tensor([[1.0, 2], [3, 4]])
    expected = scale.repeat_interleave(128, 0)[:192].repeat_interleave(128, 1)
    tensors = {"w.weight": q, "w.weight_scale": scale}
    assert torch.equal(one(tmp_path, tensors, config), expected)
    # 192 rows are two blocks of 96, or one of 128 and the rest.
    with pytest.raises(
        SourceError, match="blocks of 96 x 128 or 128 x 128, and the config does not say"
    ):
        one(tmp_path, tensors)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_fused_matrices_of_different_sizes_are_not_scaled_by_equal_parts(tmp_path, shape):
    q, scale = torch.ones(96, 32).to(torch.float8_e4m3fn), torch.tensor([1.0, 2, 3])
    tensors = {"qkv_proj.weight": q, "qkv_proj.weight_scale": scale.reshape(shape)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    expected = scale.repeat_interleave(32)[:, None].expand(96, 32)
    assert torch.equal(one(tmp_path, tensors, heads), expected)
    for config in ({}, heads | {"num_key_value_heads": 2}):
        with pytest.raises(SourceError, match="may be 3 matrices in one"):
            one(tmp_path, tensors, config)


def test_a_matrix_of_one_block_across_is_read_by_deepseeks_name_alone(tmp_path):
    q, scale = torch.ones(512, 64).to(torch.float8_e4m3fn), torch.tensor([[1.0], [2], [3], [4]])
    expected = scale.repeat_interleave(128, 0).expand(512, 64)
    assert torch.equal(one(tmp_path, {"w.weight": q, "w.weight_scale_inv": scale}), expected)
    # A scale for each of four matrices has the same shape.
    with pytest.raises(SourceError, match="may be 4 matrices in one, or blocks") as refused:
        one(tmp_path, {"w.weight": q, "w.weight_scale": scale})
    assert "weight_block_size" in refused.value.hint
    # 480 rows are four blocks of 120, or three of 128 and the rest.
    with pytest.raises(SourceError, match="blocks of 120 x 64 or 128 x 64, and the config does"):
        one(tmp_path, {"w.weight": q[:480].clone(), "w.weight_scale_inv": scale})


BLOCKS_OF_32 = {"quantization_config": {"weight_block_size": [32, 32]}}


@pytest.mark.parametrize(
    ("weight", "scale", "config"),
    [
        ((96, 64), (3, 1), BLOCKS_OF_32),
        ((96, 64), (1, 2), BLOCKS_OF_32),
        ((96, 64), (96, 2), BLOCKS_OF_32),
        ((96, 64), (2, 3), {}),
        ((96, 64), (64,), {}),
        ((96, 64), (1, 96), {}),
        ((2, 96, 64), (6, 2), {}),
        ((2, 96, 64), (4, 3, 1), BLOCKS_OF_32),
        ((2, 3, 32, 32), (6, 1, 1), {}),
        ((2, 96, 64), (2,), {}),
    ],
)
def test_scales_that_are_not_of_the_matrix_are_refused(tmp_path, weight, scale, config):
    q = torch.ones(weight).to(torch.float8_e4m3fn)
    tensors = {"w.weight": q, "w.weight_scale": torch.rand(scale)}
    with pytest.raises(SourceError, match=r"w\.weight.* its weight cannot be computed"):
        one(tmp_path, tensors, config)


def test_a_matrix_of_one_stated_block_across_has_a_scale_for_some_rows(tmp_path):
    q, scale = torch.ones(96, 32).to(torch.float8_e4m3fn), torch.tensor([[1.0], [2], [3]])
    tensors = {"w.weight": q, "w.weight_scale": scale}
    expected = scale.repeat_interleave(32, 0).expand(96, 32)
    assert torch.equal(one(tmp_path, tensors, BLOCKS_OF_32), expected)


def packed_parts(shape, columns=1):
    words = torch.zeros(4, columns, dtype=torch.int32)
    return {"w.weight_packed": words, "w.weight_scale": torch.ones(4, 1), "w.weight_shape": shape}


@pytest.mark.parametrize(
    "tensors",
    [
        packed_parts(torch.tensor([4.0, 8.0])),
        packed_parts(torch.tensor([4, 0]), 0),
        packed_parts(torch.tensor([4])),
        {"w.weight": torch.zeros(4, 8, dtype=torch.int8), "w.weight_scale": torch.ones(0, 1)},
        {"w.weight": torch.zeros(4, 0, dtype=torch.int8), "w.weight_scale": torch.ones(4, 1)},
        packed_parts(torch.tensor([4, 8])) | {"w.weight_scale": torch.ones(1, 4)},
        {"w.weight": torch.zeros(4, 0, dtype=torch.int8), "w.SCB": torch.ones(4)},
    ],
    ids=[
        *("shape in floats", "no columns", "one dimension", "no scale", "no values"),
        *("scales across", "no columns of bitsandbytes"),
    ],
)
def test_broken_parts_are_refused(tmp_path, tensors):
    with pytest.raises(SourceError, match="its weight cannot be computed"):
        one(tmp_path, tensors)


def test_a_matrix_with_one_scale_is_computed_by_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("inheritune.conversion.dequantise.CHUNK", 64)
    tensors = {"w.weight": torch.ones(40, 32).to(torch.float8_e4m3fn)}
    save_file(tensors | {"w.weight_scale": torch.ones(1)}, tmp_path / "one.safetensors")
    headers = {t.name: t for t in read_header(tmp_path / "one.safetensors")[0]}
    (weight,) = dequantised(headers, {})
    assert {part.shape for part in weight.values()} == {(2, 32)}


def test_mxfp4_is_what_transformers_computes(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 64, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 64, 2), dtype=torch.uint8)
    ours = one(tmp_path, {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales})
    theirs = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(ours.bfloat16(), theirs)


def test_a_gpt_oss_of_mxfp4_is_complete(tmp_path):
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    model = transformers.GptOssForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "gpt-oss")
    path = tmp_path / "gpt-oss" / WEIGHTS
    held, shapes = load_file(path), {}
    for name in [n for n in held if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = held.pop(name).shape
        shapes[name] = experts, columns, rows
        packed = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        held[f"{name}_blocks"] = packed
        held[f"{name}_scales"] = torch.full(packed.shape[:-1], 120, dtype=torch.uint8)
    save_file(held, path, {"format": "pt"})
    change(tmp_path / "gpt-oss", None, "nothing", quantization_config={"quant_method": "mxfp4"})
    done = api.convert(tmp_path / "gpt-oss", tmp_path / "out", progress=False)
    assert done.check == "complete: GptOssForCausalLM"
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert {n: tuple(written[n].shape) for n in shapes} == shapes


@pytest.fixture(scope="module")
def of_libraries():
    """What bitsandbytes and compressed-tensors computed, see fixtures/of_libraries.py."""
    return load_file(Path(__file__).parents[1] / "fixtures/of_libraries.safetensors")


@pytest.mark.parametrize("case", ["nf4", "nf4 nested", "fp4", "fp4 nested", "int8", "packed"])
def test_weights_are_what_the_library_that_quantised_them_computes(tmp_path, of_libraries, case):
    start, end = f"{case}.w.", f"{case}.expected"
    parts = {n.removeprefix(f"{case}."): t for n, t in of_libraries.items() if n.startswith(start)}
    expected = of_libraries[end]
    assert torch.equal(one(tmp_path, parts).to(expected.dtype), expected)
