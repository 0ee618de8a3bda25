"""Compute the size of the key-value cache per token, from a model's headers and config."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import first_int, keeps_no_keys, key_value_width
from inheritune.model_files.layers import attends, layer_kinds
from inheritune.model_files.safetensors import item_bits
from inheritune.surgery.plan import stored_dtype

# The cache holds one value for each row of these matrices.
_LATENT = re.compile(r"\.kv_a_proj(_with_mqa)?\.weight$")
_KEYS = re.compile(r"\.(k_proj|key|key_proj|wk|k|k_lin)\.weight$")
_VALUES = re.compile(r"\.(v_proj|value|value_proj|wv|v|v_lin)\.weight$")
_NOT_OF_TEXT = re.compile(r"cross_attn|linear_attn|indexer")
_WINDOWED = ("sliding", "local", "chunked")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size")
# Period of the layers with full attention, for families whose old configs do not give it.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}


@dataclass(frozen=True)
class CacheCost:
    """Size of the cache."""

    bytes_per_token: int  # bytes per token while no window is full, at the dtype of the weights
    bytes_beyond_window: int  # bytes of each further token once the windows are full
    # Tokens that windowed layers keep; None: there are none, or their window is unknown.
    window: int | None


class Cache:
    """The key-value cache of a reference with any of its layers, from its headers and config.

    Layers with a state of fixed size keep nothing per token. Latent attention keeps its latent and
    the rotated part of the keys, as inference engines do; transformers keeps more.
    """

    def __init__(self, reference: ModelDirectory) -> None:
        self.reference = reference
        self.section = text_config(reference.config)
        self.item_bytes = item_bits(stored_dtype([*reference.tensors.values()]) or "F32") / 8

    def cost(self, kept: Sequence[int]) -> CacheCost:
        """Compute the cache's size with some of the layers, given by index from 0."""
        windowed = [i for i in kept if self.windowed[i]]
        values = sum(self.widths[i] for i in kept)
        unlimited = values - sum(self.widths[i] for i in windowed)
        window = first_int(self.section, _WINDOWS) if windowed else None
        return CacheCost(int(values * self.item_bytes), int(unlimited * self.item_bytes), window)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Values that each layer keeps per token."""
        total = self.reference.layers
        if keeps_no_keys(self.section):
            return (0,) * total
        kinds = layer_kinds(self.section, total)
        # The last layers reuse the keys of others.
        shared = self.section.get("num_kv_shared_layers")
        unshared = total - shared if type(shared) is int else total
        by_config = key_value_width(self.section)
        return tuple(
            (self._stored_widths.get(i) or by_config)
            if i < unshared and (kinds is None or attends(kinds[i]))
            else 0
            for i in range(total)
        )

    @cached_property
    def windowed(self) -> tuple[bool, ...]:
        """True for each layer that keeps only the last tokens."""
        section, total = self.section, self.reference.layers
        kinds = layer_kinds(section, total)
        if kinds is not None and section.get("attention_window_size"):  # recurrent_gemma
            return tuple(attends(kind) for kind in kinds)
        if kinds is not None and any(attends(k) and k.startswith(_WINDOWED) for k in kinds):
            return tuple(kind.startswith(_WINDOWED) for kind in kinds)
        if kinds is not None and "layer_types" in section:
            return (False,) * total
        return tuple(_is_windowed(section, i) for i in range(total))

    @cached_property
    def _stored_widths(self) -> dict[int, int]:
        """Count the numbers cached per token by layer: rows of keys and values, or of the latent.

        Layers whose projections are fused into one matrix are missing.
        """
        latent: dict[int, int] = defaultdict(int)
        keys: dict[int, int] = defaultdict(int)
        values: dict[int, int] = defaultdict(int)
        patterns = ((_LATENT, latent), (_KEYS, keys), (_VALUES, values))
        for name, tensor in self.reference.tensors.items():
            if len(tensor.shape) != 2 or _NOT_OF_TEXT.search(name):
                continue
            widths = next((widths for pattern, widths in patterns if pattern.search(name)), None)
            if widths is None or (layer := self.reference.container.layer_of(name)) is None:
                continue
            widths[layer] += tensor.shape[0]
        # Some models compute the values with the matrix of the keys.
        separate = {i: rows + values.get(i, rows) for i, rows in keys.items()}
        return separate | latent


def _is_windowed(section: Mapping[str, Any], layer: int) -> bool:
    """Tell from a layer's position whether it has a window, for configs that do not list it."""
    if not section.get("sliding_window") or section.get("use_sliding_window") is False:
        return False
    period = first_int(section, ("sliding_window_pattern", "global_attn_every_n_layers"))
    period = period or _FULL_EVERY.get(str(section.get("model_type")))
    if period:
        return (layer + 1) % period != 0
    if "use_sliding_window" in section:  # Qwen2 and its relatives: from this layer on
        first = section.get("max_window_layers")
        return type(first) is int and layer >= first
    return True
