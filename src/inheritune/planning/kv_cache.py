"""What a model keeps of each token while it generates, layer by layer, from headers and config."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import first_int, keeps_no_keys, key_value_width
from inheritune.model_files.layer_kinds import attends, layer_kinds
from inheritune.model_files.safetensors import item_bits
from inheritune.surgery.plan import stored_dtype

__all__ = ["Cache", "CacheCost"]

# The rows of these matrices are what is kept.
_LATENT = re.compile(r"\.kv_a_proj(_with_mqa)?\.weight$")
_KEYS = re.compile(r"\.(k_proj|key|key_proj|wk|k|k_lin)\.weight$")
_VALUES = re.compile(r"\.(v_proj|value|value_proj|wv|v|v_lin)\.weight$")
_NOT_OF_TEXT = re.compile(r"cross_attn|linear_attn|indexer")
_WINDOWED = ("sliding", "local", "chunked")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size")
# Every how manieth layer is one of full attention where old configs leave it to the class.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}


@dataclass(frozen=True)
class CacheCost:
    """What is kept for each token.

    Attributes:
        bytes_per_token: While no window is full, at the dtype of the weights on disk.
        bytes_beyond_window: Of each further token once the windows are full.
        window: Tokens that windowed layers keep; None: there are none, or their window is unknown.
    """

    bytes_per_token: int
    bytes_beyond_window: int
    window: int | None


class Cache:
    """The cache of a reference with any of its layers.

    Layers with a state of fixed size keep nothing per token. Latent attention keeps its latent and
    the rotated part of the keys, as inference engines do; transformers keeps more.

    Args:
        reference: Only its headers and its config are looked at.
    """

    def __init__(self, reference: ModelDirectory) -> None:
        self.reference = reference
        self.section = text_config(reference.config)
        self.item_bytes = item_bits(stored_dtype([*reference.tensors.values()]) or "F32") / 8

    def cost(self, kept: Sequence[int]) -> CacheCost:
        """With some of the layers.

        Args:
            kept: Which, from 0.
        """
        windowed = [i for i in kept if self.windowed[i]]
        every = sum(self.widths[i] for i in kept)
        full = every - sum(self.widths[i] for i in windowed)
        window = first_int(self.section, _WINDOWS) if windowed else None
        return CacheCost(int(every * self.item_bytes), int(full * self.item_bytes), window)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Values that each layer keeps of a token."""
        total = self.reference.layers
        if keeps_no_keys(self.section):
            return (0,) * total
        kinds = layer_kinds(self.section, total)
        shared = self.section.get("num_kv_shared_layers")  # the last ones use those of others
        own = total - shared if type(shared) is int else total
        written = self._written
        by_config = key_value_width(self.section)
        return tuple(
            (written.get(i) or by_config) if i < own and (kinds is None or attends(kinds[i])) else 0
            for i in range(total)
        )

    @cached_property
    def windowed(self) -> tuple[bool, ...]:
        """Whether each layer keeps the last tokens only."""
        section, total = self.section, self.reference.layers
        kinds = layer_kinds(section, total)
        if kinds is not None and section.get("attention_window_size"):  # recurrent_gemma
            return tuple(attends(kind) for kind in kinds)
        if kinds is not None and any(attends(k) and k.startswith(_WINDOWED) for k in kinds):
            return tuple(kind.startswith(_WINDOWED) for kind in kinds)
        if kinds is not None and "layer_types" in section:
            return (False,) * total
        return tuple(map(_by_number(section), range(total)))

    @cached_property
    def _written(self) -> dict[int, int]:
        """Rows of the key and value matrices, where they are matrices of their own."""
        latent: dict[int, int] = defaultdict(int)
        keys: dict[int, int] = defaultdict(int)
        values: dict[int, int] = defaultdict(int)
        patterns = ((_LATENT, latent), (_KEYS, keys), (_VALUES, values))
        for name, tensor in self.reference.tensors.items():
            if len(tensor.shape) != 2 or _NOT_OF_TEXT.search(name):
                continue
            found = next((found for pattern, found in patterns if pattern.search(name)), None)
            if found is None or (layer := self.reference.container.layer_of(name)) is None:
                continue
            found[layer] += tensor.shape[0]
        # Some compute values from the matrix of the keys.
        separate = {i: rows + values.get(i, rows) for i, rows in keys.items()}
        return separate | latent


def _by_number(section: Mapping[str, Any]) -> Any:
    if not section.get("sliding_window") or section.get("use_sliding_window") is False:
        return lambda i: False
    every = first_int(section, ("sliding_window_pattern", "global_attn_every_n_layers"))
    every = every or _FULL_EVERY.get(str(section.get("model_type")))
    if every:
        return lambda i: (i + 1) % every != 0
    if "use_sliding_window" in section:  # qwen2 and its kin: from this layer on
        first = section.get("max_window_layers")
        return lambda i: type(first) is int and i >= first
    return lambda i: True
