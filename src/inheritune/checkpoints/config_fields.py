"""What the fields of a config mean for a model cut to its first layers.

Each rule takes a value and the cut, and returns the value for the target; the same value means that
the field stays. Names come first because an index list can be as long as there are layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inheritune.errors import UnsupportedModelError

__all__ = ["COUNTS", "LEFT_ALONE", "RULES", "Cut"]

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Cut:
    """Keep the first ``layers`` of ``total``."""

    layers: int
    total: int


Rule = Callable[[Any, Cut], Any]


def _per_layer(value: Any, cut: Cut) -> Any:
    if not isinstance(value, list) or not value:
        return value  # a scalar for all layers, or a list left to its default
    if len(value) < cut.total:
        raise UnsupportedModelError(
            f"has {len(value)} entries for {cut.total} layers.",
            "Correct the config: one entry for each layer.",
        )
    return value[: cut.layers]


def _letters(value: Any, cut: Cut) -> Any:
    return value[: cut.layers] if isinstance(value, str) and len(value) >= cut.total else value


def _indices(value: Any, cut: Cut) -> Any:
    if isinstance(value, str):  # "4,5,6"
        kept = [i for i in value.split(",") if i.strip().isdecimal() and int(i) < cut.layers]
        return ",".join(kept) if value else value
    return [i for i in value if i < cut.layers] if _is_ints(value) else value


def _indices_from_1(value: Any, cut: Cut) -> Any:
    return [i for i in value if i <= cut.layers] if _is_ints(value) else value


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _by_index(value: Any, cut: Cut) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: v for k, v in value.items() if not k.isdecimal() or int(k) < cut.layers}


def _last_index(value: Any, cut: Cut) -> Any:
    return min(value, cut.layers - 1) if type(value) is int and value >= 0 else value  # -1: last


def _from_the_end(value: Any, cut: Cut) -> Any:
    return max(0, cut.layers - (cut.total - value)) if type(value) is int else value


def _over_root_of_depth(value: Any, cut: Cut) -> Any:
    if not isinstance(value, int | float) or cut.layers == cut.total:
        return value
    return value * math.sqrt(cut.layers / cut.total)


def _run_lengths(value: Any, cut: Cut) -> Any:
    # gpt_neo: [[["global", "local"], 12]] means 24 layers, alternating.
    try:
        kinds = [kind for pattern, times in value for _ in range(times) for kind in pattern]
    except (TypeError, ValueError):
        return value
    return value if len(kinds) == cut.layers else [[kinds[: cut.layers], 1]]


def _none(value: Any, cut: Cut) -> Any:
    return 0 if type(value) is int else value


def _count(value: Any, cut: Cut) -> Any:
    return cut.layers if value == cut.total else value


RULES: dict[str, tuple[Rule, str]] = {
    **dict.fromkeys([*COUNTS, "num_blocks"], (_count, "number of layers")),
    **dict.fromkeys(
        [
            *("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers"),
            *("intermediate_size", "activation_sparsity_pattern", "indexer_types"),
            *("layer_rope_theta", "num_attention_heads_per_layer", "kv_source_layers"),
            *("swiglu_limits", "swiglu_limits_shared", "attention_layers", "compress_ratios"),
            *("moe_layer_freq", "sparse_attention_freq"),
        ],
        (_per_layer, "one entry for each layer"),
    ),
    **dict.fromkeys(
        ["hybrid_override_pattern", "index_topk_pattern"], (_letters, "one letter for each layer")
    ),
    **dict.fromkeys(
        [
            *("moe_layers", "mlp_only_layers", "full_attn_idxs", "hybrid_layer_ids"),
            *("cross_attention_layers", "attn_layer_indices", "local_layer_ids"),
            *("rope_scaling_layers", "moe_layers_enum"),
        ],
        (_indices, "numbers of layers, from 0"),
    ),
    **dict.fromkeys(
        ["kda_layers", "full_attn_layers", "ple_layer_ids"],
        (_indices_from_1, "numbers of layers, from 1"),
    ),
    "per_layer_config": (_by_index, "settings by number of layer"),
    "moe_layer_end_index": (_last_index, "the last layer with experts"),
    "num_kv_shared_layers": (_from_the_end, "layers counted from the end"),
    "scale_depth": (_over_root_of_depth, "divided by the square root of the depth in use"),
    "attention_types": (_run_lengths, "one entry for each layer, in run lengths"),
    **dict.fromkeys(
        [
            *("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"),
            "mtp_num_layers",
        ],
        (_none, "multi-token-prediction layers are dropped: they read the full depth"),
    ),
}

# Lists that can be as long as there are layers by chance, and say nothing about them. The towers'
# configs count their own layers; deepstack_visual_indexes counts those of the vision tower.
LEFT_ALONE = {
    *("architectures", "auto_map", "id2label", "label2id", "task_specific_params"),
    *("vision_config", "audio_config", "image_config", "speech_config", "deepstack_visual_indexes"),
    *("rope_parameters", "rope_scaling", "mrope_section", "time_step_limit", "block_types"),
    *("quantization_config", "compression_config", "keys_to_ignore_at_inference"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("image_grid_pinpoints", "init_config", "transformers.js_config", "languages"),
}
