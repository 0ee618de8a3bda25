"""Read the kind of each layer of a hybrid model from its config: attention, recurrent, MLP."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["adapts_cut_layer", "attends", "layer_kinds"]

# Layers that keep a state of fixed size, or none at all; all others keep keys and values.
_STATELESS = {"mlp", "moe", "-", "E"}
_RECURRENT = {"linear_attention", "linear", "mamba", "mamba2", "recurrent", "conv", "kda", "M"}


def attends(kind: str) -> bool:
    """Tell whether a kind of layer keeps keys and values, of all tokens or of a window of them."""
    return kind not in _STATELESS and kind not in _RECURRENT


def layer_kinds(section: Mapping[str, Any], total: int) -> list[str] | None:
    """Return the kind of each layer, in the words of the config.

    Returns:
        One kind for each layer; None where the config leaves them to the model's class, or there is
        one kind only.
    """
    for name in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        value = section.get(name)
        if isinstance(value, list | str) and len(value) >= total:
            return [str(kind) for kind in value[:total]]
    if isinstance(value := section.get("block_types"), list) and value:
        return [str(value[i % len(value)]) for i in range(total)]  # recurrent_gemma
    is_attention = _attention_by_number(section)
    if is_attention is None:
        return None
    return ["attention" if is_attention(i) else "recurrent" for i in range(total)]


def adapts_cut_layer(
    name: str, section: Mapping[str, Any], total: int, kept: Collection[int]
) -> bool:
    """Tell whether a tensor adapts a shared layer to a place that is cut off (zamba2).

    In zamba2, all attention layers share the weights of the first ones, which hold a list of
    adapters: one for each place where they are used.
    """
    _, separator, rest = name.partition("_adapter_list.")
    number = rest.partition(".")[0]
    if not separator or section.get("model_type") != "zamba2" or not number.isdecimal():
        return False
    places = [i for i, kind in enumerate(layer_kinds(section, total) or []) if attends(kind)]
    return int(number) < len(places) and places[int(number)] not in kept


def _attention_by_number(section: Mapping[str, Any]) -> Callable[[int], bool] | None:
    """Return a test of layer indices for attention, from the ways in which configs number it."""
    linear = section.get("linear_attn_config")
    from_one = linear.get("full_attn_layers") if isinstance(linear, Mapping) else None
    if isinstance(from_one, list):  # kimi_linear
        return lambda i: i + 1 in from_one
    for name in ("attn_layer_indices", "full_attn_idxs"):  # bamba, lfm2
        if isinstance(numbers := section.get(name), list):
            return lambda i: i in numbers
    period, offset = section.get("attn_layer_period"), section.get("attn_layer_offset")
    if section.get("model_type") == "zamba":  # counts its period from the fourth layer
        period = None
    if type(period) is int and type(offset) is int and period > 0:  # jamba
        return lambda i: i % period == offset
    for name in ("full_attention_interval", "layer_group_size"):  # qwen3_next, bailing_hybrid
        if type(every := section.get(name)) is int and every > 0:
            return lambda i: (i + 1) % every == 0
    return None
