"""Cut the fields of a config that depend on layers, each by the rule of its name.

A rule takes a field's value and the cut, and returns the value for the target. The field names were
collected from the 155 decoder-only model types of transformers 5; scalars that hold for any number
of first layers (``first_k_dense_replace``, ``decoder_sparse_step``, ...) need no rule.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inheritune.errors import UnsupportedModelError

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
"""Fields that count the layers. A config may hold two of them; all are edited."""


@dataclass(frozen=True)
class Cut:
    """The layers that are kept."""

    kept: tuple[int, ...]  # layer indices, ascending and without repeats, from 0
    total: int  # number of layers of the reference

    @property
    def layers(self) -> int:
        """Number of kept layers."""
        return len(self.kept)

    @property
    def is_prefix(self) -> bool:
        """Whether the kept layers are the first ones, so that none moves."""
        return self.kept[-1] == self.layers - 1


Rule = Callable[[Any, Cut], Any]


# --- one entry for each layer: keep those of the kept layers ---
# Otherwise the list has the wrong length, or its entries belong to other layers: some classes
# refuse it, others silently build wrong layers.


def _per_layer(value: Any, cut: Cut) -> Any:
    if not isinstance(value, list) or not value:
        return value  # one value for all layers, or a list that the class fills in
    if len(value) < cut.total:
        raise UnsupportedModelError(
            f"has {len(value)} entries for {cut.total} layers.",
            "Correct the config: one entry for each layer.",
        )
    # Published lists can be longer: their last entries are for prediction layers.
    return [value[i] for i in cut.kept]


def _with_sharing(value: Any, cut: Cut) -> Any:
    kinds = _per_layer(value, cut)
    if isinstance(kinds, list) and kinds and kinds[0] == "shared":
        raise UnsupportedModelError(
            f"lets layer {cut.kept[0]} share what a layer below it computes, but it would be the "
            "first.",
            "Keep a layer that computes its own, below it.",
        )
    return kinds


def _letters(value: Any, cut: Cut) -> Any:
    """Cut a text with one letter for each layer, such as nemotron_h's ``"M-M*"``."""
    if not isinstance(value, str) or len(value) < cut.total:
        return value
    return "".join(value[i] for i in cut.kept)


def expand_runs(value: Any, most: int) -> list[Any] | None:
    """Expand run lengths such as ``[[["global", "local"], 12]]`` of gpt_neo to 24 layer kinds.

    None where the value has another form, or repeats a pattern more than ``most`` times.
    """
    kinds: list[Any] = []
    try:
        for pattern, times in value:
            if times > most:
                return None
            kinds += list(pattern) * times
    except (TypeError, ValueError):
        return None
    return kinds


def _run_lengths(value: Any, cut: Cut) -> Any:
    kinds = expand_runs(value, cut.total)
    if kinds is None or len(kinds) == cut.layers:
        return value
    return [[[kinds[i] for i in cut.kept if i < len(kinds)], 1]]


# --- numbers of layers: drop those of layers that go, and renumber those of layers that move ---


def _indices(value: Any, cut: Cut) -> Any:
    place = {layer: i for i, layer in enumerate(cut.kept)}
    if isinstance(value, str):  # "4,5,6"
        numbers = [int(i) for i in value.split(",") if is_number(i.strip())]
        return ",".join(str(place[i]) for i in numbers if i in place) if value else value
    return [place[i] for i in value if i in place] if _is_ints(value) else value


def _indices_from_1(value: Any, cut: Cut) -> Any:
    place = {layer + 1: i + 1 for i, layer in enumerate(cut.kept)}
    return [place[i] for i in value if i in place] if _is_ints(value) else value


def _by_index(value: Any, cut: Cut) -> Any:
    """Cut a mapping from layer number to settings; keys that are no numbers stay."""
    if not isinstance(value, dict):
        return value
    place = {layer: i for i, layer in enumerate(cut.kept)}
    moved = {k: str(place.get(int(k), "")) if is_number(k) else k for k in value}
    return {moved[k]: v for k, v in value.items() if moved[k]}


def is_number(text: str) -> bool:
    """Tell whether a text can be a layer number; Python refuses to read 5,000 digits."""
    return text.isdecimal() and len(text) < 10


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


# --- scalars that depend on the number of layers ---


def _count(value: Any, cut: Cut) -> Any:
    return cut.layers if value == cut.total else value


def _zero(value: Any, cut: Cut) -> Any:
    return 0 if type(value) is int else value


def _last_index(value: Any, cut: Cut) -> Any:
    if type(value) is not int or value < 0:  # -1: the last layer
        return value
    # The new index of the last kept layer up to the old one.
    return max((i for i, layer in enumerate(cut.kept) if layer <= value), default=0)


def _from_the_end(value: Any, cut: Cut) -> Any:
    """Count the kept layers among the reference's last ``value`` layers."""
    if type(value) is not int:
        return value
    return sum(layer >= cut.total - value for layer in cut.kept)


def _over_root_of_depth(value: Any, cut: Cut) -> Any:
    """Scale s so that the class's s / sqrt(layers) stays: s' = s sqrt(layers' / layers)."""
    if not isinstance(value, int | float) or cut.layers == cut.total:
        return value
    try:
        return value * math.sqrt(cut.layers / cut.total)
    except OverflowError as error:
        raise UnsupportedModelError("is too large a number.", "Correct the config.") from error


# --- the fields ---

PREDICTION_LAYERS = (
    *("num_nextn_predict_layers", "num_mtp_layers"),
    *("mtp_num_hidden_layers", "mtp_num_layers"),
)
"""Fields that count the multi-token-prediction layers."""

PER_LAYER = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers"),
    *("intermediate_size", "activation_sparsity_pattern", "indexer_types"),
    *("layer_rope_theta", "num_attention_heads_per_layer", "kv_source_layers"),
    *("swiglu_limits", "swiglu_limits_shared", "attention_layers", "compress_ratios"),
    *("moe_layer_freq", "sparse_attention_freq"),
)
"""Fields that hold one entry for each layer where they are lists."""

RULES: dict[str, tuple[Rule, str]] = {
    **dict.fromkeys([*COUNTS, "num_blocks"], (_count, "number of layers")),
    **dict.fromkeys(PER_LAYER, (_per_layer, "one entry for each layer")),
    "indexer_types": (_with_sharing, "one entry for each layer"),
    **dict.fromkeys(
        ["hybrid_override_pattern", "index_topk_pattern"], (_letters, "one letter for each layer")
    ),
    "attention_types": (_run_lengths, "one entry for each layer, in run lengths"),
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
    **dict.fromkeys(
        PREDICTION_LAYERS,
        (_zero, "multi-token-prediction layers are dropped: they read the full depth"),
    ),
}
"""The rule for each field, and the reason that its edit is given in inherit.json."""

LEFT_ALONE = {
    *("architectures", "auto_map", "id2label", "label2id", "task_specific_params"),
    *("vision_config", "audio_config", "image_config", "speech_config", "deepstack_visual_indexes"),
    *("rope_parameters", "rope_scaling", "mrope_section", "time_step_limit", "block_types"),
    *("quantization_config", "compression_config", "keys_to_ignore_at_inference"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("image_grid_pinpoints", "init_config", "transformers.js_config", "languages"),
}
"""Fields whose lists may be as long as there are layers by chance, and configs of other towers.

``deepstack_visual_indexes`` counts layers of the vision tower; ``block_types`` is a pattern that
repeats.
"""
