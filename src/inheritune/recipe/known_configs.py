"""Give the shapes of published models that recipes name, to plan with before they are downloaded.

The values are those of the models' public config.json files. Training and inheriting always read
the model itself instead.
"""

from pathlib import PurePosixPath
from typing import Any

__all__ = ["known_config", "known_models"]


def _llama(
    width: int, inner: int, layers: int, heads: int, positions: int, epsilon: float
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": positions,
        "vocab_size": 32000,
        "hidden_act": "silu",
        "rms_norm_eps": epsilon,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    }


_CONFIGS = {
    "open_llama_3b": _llama(3200, 8640, 26, 32, 2048, 1e-6),
    "open_llama_7b": _llama(4096, 11008, 32, 32, 2048, 1e-6),
    "Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 4096, 1e-5),
}


def known_models() -> list[str]:
    """List the models whose shape is known, without their owners."""
    return sorted(_CONFIGS)


def known_config(model: str) -> dict[str, Any] | None:
    """Look up the shape of a published model by the last part of its Hub id or directory.

    Args:
        model: Such as ``"openlm-research/open_llama_3b"`` or ``"./open_llama_3b"``.

    Returns:
        The fields of config.json that decide sizes; None if the model is not known.
    """
    config = _CONFIGS.get(PurePosixPath(model.replace("\\", "/")).name)
    return None if config is None else dict(config)
