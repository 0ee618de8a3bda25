"""A reference that is still to be trained, as the headers that it will have."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.model_files.config import layer_count
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import attention_heads, first_int
from inheritune.model_files.safetensors import Tensor

__all__ = ["synthetic_headers"]

# The families that references are trained in here; of others, only their classes know the shapes.
_LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3"}
_FILE = "model.safetensors"
Shapes = dict[str, tuple[int, ...]]


def synthetic_headers(config: Mapping[str, Any]) -> ModelDirectory | None:
    """A model directory that is on no disk: names and shapes in fp32, as its class would write it.

    Args:
        config: Raw config.json, with a vocab_size.

    Returns:
        None for a family whose shapes are not known here, or where the config leaves widths to it.
    """
    model_type = config.get("model_type")
    shapes = None
    if model_type in _LLAMA_LIKE:
        shapes = _llama(config)
    elif model_type == "gpt2":
        shapes = _gpt2(config)
    if shapes is None:
        return None
    tensors, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        tensors[name] = Tensor(name, "F32", shape, Path(_FILE), position, size)
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
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(layer_count(config)):
        layer = f"model.layers.{i}."
        rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        for name, count in rows.items():
            shapes[f"{layer}self_attn.{name}.weight"] = (count, width)
            if model_type == "qwen2" or config.get("attention_bias"):
                shapes[f"{layer}self_attn.{name}.bias"] = (count,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, queries)
        if config.get("attention_bias"):
            shapes[f"{layer}self_attn.o_proj.bias"] = (width,)
        if model_type == "qwen3":
            shapes |= {f"{layer}self_attn.{n}_norm.weight": (size,) for n in "qk"}
        for name, shape in {"gate": (inner, width), "up": (inner, width)}.items():
            shapes[f"{layer}mlp.{name}_proj.weight"] = shape
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inner)
        if config.get("mlp_bias"):
            biases = {"gate": inner, "up": inner, "down": width}
            shapes |= {f"{layer}mlp.{n}_proj.bias": (count,) for n, count in biases.items()}
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
    shapes: Shapes = {
        "transformer.wte.weight": (vocab, width),
        "transformer.wpe.weight": (positions, width),
    }
    for i in range(layer_count(config)):
        layer = f"transformer.h.{i}."
        matrices = {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for name, shape in matrices.items():
            shapes[f"{layer}{name}.weight"] = shape
            shapes[f"{layer}{name}.bias"] = shape[1:]
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{layer}{name}.{part}": (width,) for part in ("weight", "bias")}
    shapes |= {f"transformer.ln_f.{part}": (width,) for part in ("weight", "bias")}
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = (vocab, width)
    return shapes
