"""Model directories of any size that take no space: real headers, and holes instead of weights."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

Shapes = dict[str, tuple[int, ...]]

_BYTES = {"F32": 4, "BF16": 2}


def write_sparse(
    directory: Path,
    config: Mapping[str, object],
    shapes: Shapes,
    dtype: str = "BF16",
    files: int = 1,
) -> Path:
    """Write config.json and weight files of full size with nothing in them."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    names = list(shapes)
    per_file = -(-len(names) // files)
    weight_map = {}
    for number in range(files):
        file = (
            f"model-{number + 1:05}-of-{files:05}.safetensors" if files > 1 else "model.safetensors"
        )
        part = {name: shapes[name] for name in names[number * per_file : (number + 1) * per_file]}
        _write_file(directory / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    if files > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _write_file(path: Path, shapes: Shapes, dtype: str) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MIXTRAL = LLAMA_8B | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}


def llama_8b() -> Shapes:
    """Names and shapes of Llama 3.1 8B."""
    return _decoder(32, 128256, lambda i: _mlp("mlp.", 14336))


# Of a Llama: width, inside the MLP, layers, width of the keys, vocabulary.
LLAMAS = {
    "3B": (3200, 8640, 26, 3200, 32_000),
    "8B": (4096, 14_336, 32, 1024, 128_256),
    "70B": (8192, 28_672, 80, 1024, 128_256),
    "405B": (16_384, 53_248, 126, 1024, 128_256),
}


def write_llama(directory: Path, size: str, files: int = 1) -> Path:
    """Write a Llama of one of these sizes."""
    width, inner, layers, keys, vocab = LLAMAS[size]
    head = 100 if size == "3B" else 128
    config = LLAMA_8B | {"hidden_size": width, "intermediate_size": inner, "vocab_size": vocab}
    config |= {"num_hidden_layers": layers, "num_attention_heads": width // head}
    config |= {"num_key_value_heads": keys // head}
    shapes = _decoder(layers, vocab, lambda i: _mlp("mlp.", inner, width), width, keys)
    return write_sparse(directory, config, shapes, files=files)


def mixtral() -> Shapes:
    """Names and shapes of Mixtral 8x7B v0.1, as it was released."""

    def experts(layer: int) -> Shapes:
        shapes: Shapes = {"block_sparse_moe.gate.weight": (8, 4096)}
        for number in range(8):
            expert = f"block_sparse_moe.experts.{number}."
            shapes |= {f"{expert}{w}.weight": (14336, 4096) for w in ("w1", "w3")}
            shapes[f"{expert}w2.weight"] = (4096, 14336)
        return shapes

    return _decoder(32, 32000, experts)


def deepseek_v3() -> Shapes:
    """Names and shapes of DeepSeek V3, its layer of multi-token prediction included."""
    width, shapes = 7168, {"model.embed_tokens.weight": (129280, 7168)}
    for i in range(62):
        layer = f"model.layers.{i}."
        attention = {
            "q_a_proj": (1536, width),
            "q_a_layernorm": (1536,),
            "q_b_proj": (128 * 192, 1536),
            "kv_a_proj_with_mqa": (576, width),
            "kv_a_layernorm": (512,),
            "kv_b_proj": (128 * 256, 512),
            "o_proj": (width, 128 * 128),
        }
        shapes |= {f"{layer}self_attn.{n}.weight": shape for n, shape in attention.items()}
        if i < 3:
            shapes |= {f"{layer}{n}": s for n, s in _mlp("mlp.", 18432, width).items()}
        else:
            shapes[f"{layer}mlp.gate.weight"] = (256, width)
            shapes[f"{layer}mlp.gate.e_score_correction_bias"] = (256,)
            for part in (*(f"experts.{number}" for number in range(256)), "shared_experts"):
                shapes |= {f"{layer}{n}": s for n, s in _mlp(f"mlp.{part}.", 2048, width).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (width,)
    extra = {"enorm": (width,), "hnorm": (width,), "eh_proj": (width, 2 * width)}
    shapes |= {f"model.layers.61.{name}.weight": shape for name, shape in extra.items()}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (129280, width)}


def _mlp(prefix: str, inner: int, width: int = 4096) -> Shapes:
    shapes: Shapes = {f"{prefix}{name}_proj.weight": (inner, width) for name in ("gate", "up")}
    return shapes | {f"{prefix}down_proj.weight": (width, inner)}


def _decoder(layers: int, vocab: int, inside, width: int = 4096, keys: int = 1024) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, rows in {"q": width, "k": keys, "v": keys, "o": width}.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, width)
        shapes |= {f"{layer}{name}": shape for name, shape in inside(i).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (width,)
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}
