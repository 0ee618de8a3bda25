"""Count parameters, bytes and FLOPs of a model with some of its layers, from its headers alone."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from inheritune.model_files.config import text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import (
    attention_width,
    idle_expert_values,
    training_flops_per_token,
)
from inheritune.model_files.safetensors import Tensor
from inheritune.surgery.plan import kept_tensors

# Buffers of old files: masks, rotary tables, and expert biases that get no gradient.
_BUFFERS = re.compile(
    r"(^|\.)(masked_bias|\w*inv_freq|rotary_emb\.\w+|(?<!moe_statics\.)e_score_correction_bias|"
    r"attn_mask|layer_scalar|expert_bias|slope_rate|act_fn\.(beta|eps))$"
)
_MASK = re.compile(r"\.(attn|attention)\.bias$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|head|output)\.weight$")
_LOOKED_UP = re.compile(
    r"(^|\.)(wte|wpe|embed|embed_in|embed_tokens|embed_tokens_per_layer|embed_positions|"
    r"tok_embeddings|\w+s_embed|(\w+_)?embeddings?)\.weight$"
)
_POSITIONS = re.compile(r"(^|\.)(wpe|\w*position\w*)\.weight$")
# Classes that tie the head to the embedding unless the config says otherwise.
_TIED_BY_DEFAULT = {
    *("biogpt", "bloom", "cohere", "cohere2", "cohere2_moe", "cpmant", "ctrl", "ernie4_5"),
    *("ernie4_5_moe", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text"),
    *("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gpt-sw3", "gpt2", "gpt_bigcode"),
    *("gpt_neo", "gpt_neox_japanese", "granite_swa", "jetmoe", "lfm2", "lfm2_moe", "lfm3"),
    *("mamba", "minicpm3", "modernbert-decoder", "mpt", "openai-gpt", "opt", "recurrent_gemma"),
    *("smollm3", "starcoder2", "vaultgemma", "xglm", "youtu", "zamba", "zaya"),
}


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one layer."""

    params: int
    idle: int  # parameters of experts that a token is not sent to
    bytes: int  # bytes on disk, with buffers
    form: frozenset[tuple[str, tuple[int, ...]]]  # its tensors' names and shapes


@dataclass(frozen=True)
class Counts:
    """Counts of a model with some of its layers."""

    params: int  # a tied head is counted once
    active: int  # parameters that one token uses: all but the experts it is not sent to
    embedding: int  # parameters that are looked up by token or position, a tied head included
    bytes: int
    flops_per_token: float  # forward and backward, see `flops.training_flops_per_token`


class Sizes:
    """Count parameters, bytes and FLOPs of a reference with any choice of its layers."""

    def __init__(self, reference: ModelDirectory) -> None:
        self.reference = reference
        self.section = text_config(reference.config)

    @cached_property
    def layers(self) -> tuple[LayerCounts, ...]:
        """Counts of each layer of the reference."""
        prefix = self.reference.container.prefix
        total = self.reference.layers
        return tuple(self._layer(self._by_layer[i], f"{prefix}{i}") for i in range(total))

    def counts(self, kept: Sequence[int], seq_len: int) -> Counts:
        """Count the reference with some of its layers."""
        outside = self._outside(kept)
        weights = [t for t in outside if not is_buffer(t)]
        heads = [t for t in weights if _HEAD.search(t.name)]
        looked_up = [t for t in weights if len(t.shape) == 2 and _LOOKED_UP.search(t.name)]
        # Only the token embedding can be tied to a head.
        others = [t for t in looked_up if _POSITIONS.search(t.name) or "per_layer" in t.name]
        embeddings = [t for t in looked_up if t not in others]
        tied = bool(embeddings) and self.ties_head
        twice = _values(heads) if tied else 0  # files may hold both
        layers = [self.layers[i] for i in kept]
        params = _values(weights) - twice + sum(layer.params for layer in layers)
        active = params - sum(layer.idle for layer in layers)
        embedding = _values(looked_up)
        multiplied = active - embedding + (embeddings[0].items if tied else 0)
        attention = attention_width(self.section, self.reference.layers, kept)
        return Counts(
            params=params,
            active=active,
            embedding=embedding,
            bytes=sum(t.size for t in outside) + sum(layer.bytes for layer in layers),
            flops_per_token=training_flops_per_token(multiplied, attention, seq_len),
        )

    def _layer(self, tensors: Sequence[Tensor], prefix: str) -> LayerCounts:
        weights = [t for t in tensors if not is_buffer(t)]
        named = [(t.name.removeprefix(prefix), t.shape) for t in weights]
        return LayerCounts(
            params=_values(weights),
            idle=idle_expert_values(named, self.section),
            bytes=sum(t.size for t in tensors),
            form=frozenset(named),
        )

    @cached_property
    def _by_layer(self) -> dict[int | None, list[Tensor]]:
        """Tensors of each layer; under None those outside the layers, without prediction layers."""
        container, tensors = self.reference.container, defaultdict(list)
        for name, tensor in self.reference.tensors.items():
            if (layer := container.layer_of(name)) is not None or name not in container.outside:
                tensors[layer].append(tensor)
        return tensors

    def _outside(self, kept: Sequence[int]) -> list[Tensor]:
        if "hidden_size_per_layer_input" not in self.section:
            return self._by_layer[None]
        names = {tensor.name for tensor in self._by_layer[None]}
        # Weights outside the layers that have a part for each layer are cut with them.
        return [t for t in kept_tensors(self.reference, kept) if t.name in names]

    @property
    def ties_head(self) -> bool:
        """Whether the head is the embedding: files may hold both, or only one."""
        return not any(_HEAD.search(t.name) for t in self._by_layer[None]) or self._is_tied

    @property
    def _is_tied(self) -> bool:
        config = self.reference.config
        stated = config.get("tie_word_embeddings", self.section.get("tie_word_embeddings"))
        if isinstance(stated, bool):
            return stated
        return bool({config.get("model_type"), self.section.get("model_type")} & _TIED_BY_DEFAULT)


def is_buffer(tensor: Tensor) -> bool:
    """Tell whether a tensor is a mask, a rotary table, or of an integer dtype, not a weight."""
    if _BUFFERS.search(tensor.name) or not tensor.dtype.startswith(("F", "BF")):
        return True
    return len(tensor.shape) == 4 and _MASK.search(tensor.name) is not None


def _values(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.items for tensor in tensors)
