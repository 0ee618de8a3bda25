"""Rebuild config.json from the metadata of a GGUF file, with every key accounted for."""

from collections.abc import Mapping
from typing import Any

from inheritune.conversion.gguf.architectures import Architecture, find_architecture
from inheritune.conversion.gguf.container import AGAIN, Container
from inheritune.conversion.gguf.metadata import CONFIG_FROM, SAFETENSORS, Metadata
from inheritune.conversion.gguf.rotary import FactorReader, rope_parameters
from inheritune.errors import SourceError, UnsupportedModelError, escape

# Number of layers of the models whose queries llama.cpp scales by their width over their heads.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
_GEMMA3_PERIOD = 6  # every sixth layer attends to all positions
_GEMMA3_LOCAL_BASE = 10000.0
_SMOLLM3_PERIOD = 4  # every fourth layer has no positions
# Keys that llama.cpp ignores for every architecture that is read, or writes beside another.
_WITHOUT_EFFECT = ("vocab_size", "tensor_data_layout", "attention.causal", "pooling_type")
_COUNTED = {
    *("context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length"),
    *("expert_shared_feed_forward_length", "attention.head_count_kv"),
}
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def architecture_of(container: Container) -> Architecture:
    """Return the architecture of a file, see `find_architecture`."""
    parts = container.metadata.get("split.count", 1)
    if type(parts) is not int or parts < 0:
        raise SourceError(f"split.count is {escape(parts, 40)}, not a count.", AGAIN)
    if parts > 1:
        raise UnsupportedModelError(
            f"{container.path.name} is one of {parts:,} files of a model.",
            "Join them with llama.cpp: `llama-gguf-split --merge FIRST.gguf WHOLE.gguf`.",
        )
    name = container.architecture
    return find_architecture(name, bool(container.metadata.get(f"{name}.expert_count")))


def rebuild_config(
    container: Container,
    architecture: Architecture,
    factors: FactorReader,
    *,
    has_own_config: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Rebuild the config of a model from the metadata of its GGUF file.

    Args:
        container: The file's header.
        factors: Reads the tensors that hold scalings of rotary positions.
        has_own_config: Whether the source model's config is at hand, so that a scaling of rotary
            positions that cannot be told from the file may be left out.

    Returns:
        The config, and the keys of the architecture that have no place in it.

    Raises:
        SourceError: A key that the config needs is missing, or has a value that cannot be.
    """
    metadata = Metadata(container.metadata, container.architecture)
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary(container),
        "tie_word_embeddings": not has_own_head(container),
    }
    for key, name in architecture.fields.items():
        default = [config["num_attention_heads"]] if key == "attention.head_count_kv" else []
        config[name] = (metadata.count if key in _COUNTED else metadata.number)(key, *default)
    for key, name in architecture.optional.items():
        if (value := metadata.number(key, None)) is not None:
            config[name] = value
    if metadata.count("block_count") > len(container.tensors):
        raise SourceError(
            f"{container.path} says that it has {metadata.count('block_count'):,} layers, but has "
            f"{len(container.tensors):,} tensors.",
            AGAIN,
        )
    if "expert_count" in architecture.fields:
        experts, used = (metadata.count(f"expert_{name}") for name in ("count", "used_count"))
        if used > experts:
            raise SourceError(f"it uses {used:,} of {experts:,} experts.", AGAIN)
    config |= architecture.constants
    for tensor, flag in architecture.biases.items():
        config[flag] = f"blk.0.{tensor}" in container.tensors
    head_dim = _head_dim(metadata, config)
    not_compared = []
    if architecture.rotary:
        if "head_dim" not in config and "attention.key_length" in metadata:
            config["head_dim"] = head_dim
        rope = rope_parameters(metadata, head_dim, factors, may_be_unknown=has_own_config)
        if "rope_type" in rope:
            config["rope_parameters"] = rope
        else:
            not_compared = [f"{container.architecture}.rope"]
    _adapt(container.architecture, metadata, config, head_dim)
    for key in _WITHOUT_EFFECT:
        metadata.value(key, None)
    for name, key in _TOKENS.items():
        token = container.metadata.get(key)
        config[name] = token if type(token) is int and token < config["vocab_size"] else None
    return config, metadata.unread + not_compared


def has_own_head(container: Container) -> bool:
    """Tell whether a file holds an output head beside the embedding."""
    return "output.weight" in container.tensors


def _vocabulary(container: Container) -> int:
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None:
        raise SourceError(f"{container.path} has no token_embd.weight.", AGAIN)
    return embedding.shape[0]


def _head_dim(metadata: Metadata, config: Mapping[str, Any]) -> int:
    width = config.get("hidden_size", config.get("n_embd", 0))
    heads = config.get("num_attention_heads", config.get("n_head"))
    if type(heads) is not int or not 0 < heads <= width:
        raise SourceError(
            f"{metadata.architecture}.attention.head_count is {escape(heads, 40)}: layers of "
            "different numbers of heads are not read.",
            CONFIG_FROM,
        )
    keys = metadata.count("attention.key_length", width // heads)
    values = metadata.count("attention.value_length", keys)
    if keys != values:
        raise SourceError(f"its keys are {keys} wide, its values {values}.", CONFIG_FROM)
    return int(keys)


def _adapt(architecture: str, metadata: Metadata, config: dict[str, Any], head_dim: int) -> None:
    """Add what llama.cpp derives for one architecture and no key says."""
    layers = config.get("num_hidden_layers", 0)
    rope = config.get("rope_parameters", {})
    if architecture in _SCALED_BY_WIDTH:
        by_width = layers == _SCALED_BY_WIDTH[architecture]
        width, heads = config["hidden_size"], config["num_attention_heads"]
        config["query_pre_attn_scalar"] = width // heads if by_width else head_dim
    if architecture == "gemma3":
        local = float(metadata.number("rope.freq_base_swa", _GEMMA3_LOCAL_BASE))
        config["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        }
        config["layer_types"] = [
            "sliding_attention" if (i + 1) % _GEMMA3_PERIOD else "full_attention"
            for i in range(layers)
        ]
    elif architecture == "smollm3":
        config["no_rope_layers"] = [int((i + 1) % _SMOLLM3_PERIOD != 0) for i in range(layers)]
    elif architecture == "phi3":
        config["sliding_window"] = metadata.value("attention.sliding_window", 0) or None
        original = rope.get("original_max_position_embeddings")
        original = original or metadata.value("rope.scaling.original_context_length", None)
        if original:
            config["original_max_position_embeddings"] = original
    elif architecture == "olmo2" and "attention.sliding_window" in metadata:
        raise UnsupportedModelError(
            "it is an OLMo 3 with sliding windows, which is not read from GGUF.",
            SAFETENSORS,
        )
    elif architecture == "nemotron":  # written beside the epsilon that is used
        metadata.value("attention.layer_norm_rms_epsilon", None)
