"""Build the tensor headers of a model that does not exist yet, from its config."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.model_files.config import layer_count
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import attention_heads, first_int
from inheritune.model_files.safetensors import Tensor

# The families that this program trains references of. Of others, only the class knows the shapes.
_LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3"}
Shapes = dict[str, tuple[int, ...]]


def synthetic_headers(config: Mapping[str, Any]) -> ModelDirectory | None:
    """Describe a model as its class would write it in fp32, without a file on any disk.

    Returns:
        A model directory whose tensors have names and shapes, but no bytes. None for a family whose
        shapes are not known here, or a config that leaves widths to its class.
    """
    shapes = None
    if config.get("model_type") in _LLAMA_LIKE:
        shapes = _llama(config)
    elif config.get("model_type") == "gpt2":
        shapes = _gpt2(config)
    if shapes is None:
        return None
    tensors, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        tensors[name] = Tensor(name, "F32", shape, Path("model.safetensors"), position, size)
        position += size
    return ModelDirectory(Path("/nonexistent"), dict(config), tensors, [], "trained here")


def _llama(config: Mapping[str, Any]) -> Shapes | None:
    heads, head_size = attention_heads(config)
    size = int(head_size)
    inner = first_int(config, ["intermediate_size"])
    width, vocab = first_int(config, ["hidden_size"]), first_int(config, ["vocab_size"])
    if not (heads and size and inner and width and vocab):
        return None
    model_type = config["model_type"]
    queries = heads * size
    keys = (first_int(config, ["num_key_value_heads"]) or heads) * size
    bias = bool(config.get("attention_bias"))
    # Rows and columns of each matrix, and whether it has a bias.
    attention = {
        "q_proj": (queries, width, bias or model_type == "qwen2"),
        "k_proj": (keys, width, bias or model_type == "qwen2"),
        "v_proj": (keys, width, bias or model_type == "qwen2"),
        "o_proj": (width, queries, bias),
    }
    mlp = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(layer_count(config)):
        layer = f"model.layers.{i}."
        for name, (rows, columns, has_bias) in attention.items():
            shapes[f"{layer}self_attn.{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{layer}self_attn.{name}.bias"] = (rows,)
        if model_type == "qwen3":
            shapes |= {f"{layer}self_attn.{n}_norm.weight": (size,) for n in "qk"}
        shapes |= {f"{layer}mlp.{name}.weight": shape for name, shape in mlp.items()}
        if config.get("mlp_bias"):
            shapes |= {f"{layer}mlp.{name}.bias": shape[:1] for name, shape in mlp.items()}
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def _gpt2(config: Mapping[str, Any]) -> Shapes | None:
    width, vocab = first_int(config, ["n_embd"]), first_int(config, ["vocab_size"])
    positions = first_int(config, ["n_positions"])
    if not (width and vocab and positions):
        return None
    inner = first_int(config, ["n_inner"]) or 4 * width
    # GPT-2 stores its matrices transposed: inputs are rows.
    matrices = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }
    shapes: Shapes = {
        "transformer.wte.weight": (vocab, width),
        "transformer.wpe.weight": (positions, width),
    }
    for i in range(layer_count(config)):
        layer = f"transformer.h.{i}."
        for name, shape in matrices.items():
            shapes[f"{layer}{name}.weight"] = shape
            shapes[f"{layer}{name}.bias"] = shape[1:]
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{layer}{name}.{part}": (width,) for part in ("weight", "bias")}
    shapes |= {f"transformer.ln_f.{part}": (width,) for part in ("weight", "bias")}
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = (vocab, width)
    return shapes
