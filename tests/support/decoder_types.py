"""Which model types are decoder-only language models, and which class stands for each."""

from typing import Any

__all__ = ["decoder_types", "left_out", "model_class"]

# What no mapping of transformers tells.
_NAMED = {
    "bert-generation": "an encoder",
    "trocr": "the decoder half of an encoder-decoder",
    "xlnet": "it predicts in a permuted order, not from left to right",
}


def _mappings() -> tuple[dict[str, Any], dict[str, Any]]:
    from transformers.models.auto import modeling_auto as auto

    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return dict(causal), dict(masked)


def _is_encoder_decoder(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    found = CONFIG_MAPPING[model_type]
    if found.is_encoder_decoder:
        return True
    # Two set it in their constructor. Not all can be built bare.
    return {"text_encoder", "decoder"} <= set(getattr(found, "sub_configs_defaults", None) or {})


def left_out() -> dict[str, str]:
    """Types of transformers' causal language models that are no decoder-only models, and why."""
    causal, masked = _mappings()
    found = {}
    for model_type in causal:
        if _is_encoder_decoder(model_type):
            found[model_type] = "an encoder-decoder, or its decoder half"
        elif model_type in masked:
            found[model_type] = "an encoder"
        elif model_type in _NAMED:
            found[model_type] = _NAMED[model_type]
    return dict(sorted(found.items()))


def decoder_types() -> list[str]:
    """Every other type, sorted."""
    return sorted(set(_mappings()[0]) - set(left_out()))


def model_class(model_type: str, config: Any) -> Any:
    """The class that stands for a type: with its towers where there are some."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = [
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type),
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(model_type),
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type),
    ]
    classes = [getattr(transformers, name) for name in names if name]
    fitting = [found for found in classes if found.config_class is type(config)]
    return (fitting or classes)[0]
