"""Count the floating-point operations of a training token, from a config and weight shapes.

Both loaded models and plans, which have only headers and a config, are counted here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inheritune.model_files.layers import attends, layer_kinds

EVALUATION_SHARE = 1 / 3
"""FLOPs of a forward pass, as a share of forward and backward."""

_RECURRENT_TYPES = {"falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"}
_HEADS = ("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads")
_HEAD_SIZES = ("head_dim", "attention_head_dim")
_EXPERTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_routed_experts",
)
_EXPERTS_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"),
    *("top_k_experts", "experts_per_token", "num_selected_experts", "top_k"),
)


def training_flops_per_token(multiplied: int, attention: float, seq_len: int) -> float:
    """Count the FLOPs of one training token, forward and backward: 6 N + 6 A T.

    Recomputation and states of recurrent layers are not counted; windows count as full attention.

    Args:
        multiplied: N, the weights that enter matrix products for one token: with the head once,
            without tables that are looked up, and with the experts that a token is sent to.
        attention: A, see `attention_width`.
        seq_len: T, tokens per sequence. With causal attention, a query sees T / 2 keys on average.

    Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B, with causal attention halved.
    """
    return float(6 * multiplied + 6 * attention * seq_len)


def hidden_loss_flops(section: Mapping[str, Any], layers: int) -> float:
    """Count the FLOPs of comparing one token's hidden states after some layers: 12 D for each.

    The value takes three dot products of two FLOPs per channel, and the slope about as much.

    Args:
        section: The text part of a config, which gives D.
    """
    return 12.0 * hidden_size(section) * layers


def hidden_size(section: Mapping[str, Any]) -> int:
    """Return D of the text part of a config; 0 where it is silent."""
    return first_int(section, ("hidden_size", "n_embd", "d_model")) or 0


def attention_width(
    section: Mapping[str, Any], total: int, kept: Sequence[int] | None = None
) -> float:
    """Return A = sum of heads x head size over the attention layers among ``kept`` (None: all).

    Where queries and values have different head sizes, their mean counts.
    """
    if keeps_no_keys(section):
        return 0.0
    kinds = layer_kinds(section, total)
    layers = range(total) if kept is None else kept
    attending = sum(kinds is None or attends(kinds[i]) for i in layers)
    if section.get("model_type") == "longcat_flash" and total == section.get("num_layers"):
        attending *= 2  # each layer has two attentions
    heads, size = attention_heads(section)
    nope, rope = section.get("qk_nope_head_dim"), section.get("qk_rope_head_dim")
    values = section.get("v_head_dim")
    if type(nope) is int and type(rope) is int and type(values) is int:  # latent attention
        size = (nope + rope + values) / 2
    return heads * size * attending


def keeps_no_keys(section: Mapping[str, Any]) -> bool:
    """Tell whether a model of this type has no keys and values in any layer."""
    return section.get("model_type") in _RECURRENT_TYPES


def attention_heads(section: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of query heads and the size of one; zeros where the config is silent."""
    heads = first_int(section, _HEADS) or 0
    size = first_int(section, _HEAD_SIZES) or (hidden_size(section) // heads if heads else 0)
    return heads, size


def key_value_width(section: Mapping[str, Any]) -> int:
    """Count the numbers that one attention layer caches for a token, in keys and values."""
    heads, size = attention_heads(section)
    inner = section.get("attn_config")
    key_heads = first_int(section, _KEY_VALUE_HEADS)
    if isinstance(inner, Mapping):  # dbrx
        key_heads = key_heads or first_int(inner, _KEY_VALUE_HEADS)
    # Falcon's older form states the number of its heads, but has one key-value head.
    if section.get("multi_query") is True and not section.get("new_decoder_architecture"):
        key_heads = 1
    return int(2 * (key_heads or heads) * size)


def idle_expert_values(
    tensors: Iterable[tuple[str, Sequence[int]]], section: Mapping[str, Any]
) -> int:
    """Count the weights of the experts that a token is not sent to."""
    inner = section.get("ffn_config")  # dbrx
    experts, used = (
        first_int(section, keys) or (first_int(inner, keys) if isinstance(inner, Mapping) else None)
        for keys in (_EXPERTS, _EXPERTS_PER_TOKEN)
    )
    if not experts or not used or used >= experts:
        return 0
    expert_weights = 0
    for name, shape in tensors:
        # All experts in one tensor, unless it is a convolution's.
        fused = len(shape) == 3 and shape[0] == experts and "conv" not in name
        if fused or "experts" in name.split("."):
            expert_weights += math.prod(shape)
    return expert_weights * (experts - used) // experts


def experts_per_token(section: Mapping[str, Any]) -> int:
    """Return the experts that a token is sent to; 1 where there are none to choose among."""
    inner = section.get("ffn_config")  # dbrx
    nested = first_int(inner, _EXPERTS_PER_TOKEN) if isinstance(inner, Mapping) else None
    return first_int(section, _EXPERTS_PER_TOKEN) or nested or 1


def first_int(section: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """Return the first positive integer among some fields of a config; None if there is none."""
    return next((v for key in keys if type(v := section.get(key)) is int and v > 0), None)
