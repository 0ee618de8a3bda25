"""Describe the language model inside a model that also reads images. Runs in `class_process`.

Names and config are made for the class of transformers that computes the same from text alone.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from inheritune.errors import UnsupportedModelError
from inheritune.model_files.config import text_config
from inheritune.model_files.layers import is_tower
from inheritune.model_files.model_class import find_class
from inheritune.surgery.class_check.layer_check import model_config
from inheritune.surgery.class_check.meta_load import load_on_meta

# Text models that transformers maps to no class of their own, and the model type that computes the
# same from text alone, as tests show: there the three axes of a position are equal. All others are
# taken out only where the whole computes its text by the very class that stands alone.
_SAME = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# What such a class does whatever its config says: the class of the text alone is told.
_ALWAYS = {"qwen3_vl_moe_text": {"norm_topk_prob": True}}
# Fields by which classes scale or cap their logits.
_SCALES = {"final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier"}
# Modules under which the language model lies, in the names of its tensors.
_MODULES = ("language_model", "text_model", "llm", "thinker")
_HEADS = ("lm_head.weight", "lm_head.bias")
# Fields of the whole that hold for its text, where the text's own section leaves them out.
_SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")


def text_model(
    config: Mapping[str, Any], tensors: Mapping[str, Sequence[Any]], prefix: str
) -> dict[str, Any]:
    """Find config and tensors of the language model inside a model.

    Args:
        config: Raw config of the whole.
        tensors: Safetensors dtype and shape of its tensors, by name.
        prefix: Text before the layer number in those names.

    Returns:
        ``config`` of the language model, and ``names``: its tensors' names in the whole, by their
        new ones.

    Raises:
        UnsupportedModelError: The model has no such part, or transformers no class for it.
    """
    own = find_class(config)
    if isinstance(own, str):
        raise UnsupportedModelError(f"its text cannot be taken out: {own}.", "Cut it as a whole.")
    sibling, text = _sibling(own, config)
    _refuse_other_function(own, sibling, config, text)
    names = _names(tensors, prefix)
    described = {new: tensors[old] for new, old in names.items()}
    unused = set(load_on_meta(sibling, text, described).unused)
    return {"config": text, "names": {n: old for n, old in names.items() if n not in unused}}


def has_text_model(config: Mapping[str, Any]) -> bool:
    """Tell whether `text_model` finds a language model inside a model."""
    own = find_class(config)
    if isinstance(own, str):
        return False
    try:
        sibling, text = _sibling(own, config)
        _refuse_other_function(own, sibling, config, text)
    except UnsupportedModelError:
        return False
    return True


def _refuse_other_function(
    own: Any, sibling: Any, config: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
    """Refuse a text that the whole may compute otherwise than the class of the text alone.

    Both have to run their layers by the same class, and to scale logits by the same fields.
    """
    inside, alone = (_decoder(c, fields) for c, fields in ((own, config), (sibling, text)))
    why = f"are computed by {inside.__name__}, and by {alone.__name__} in a {sibling.__name__}"
    of_text = model_config(own, config).get_text_config(decoder=True)
    is_same = inside is alone or of_text.model_type in _SAME
    if is_same:
        values = model_config(sibling, text)
        scaled = {name for name in _read_by(sibling) & _SCALES if getattr(values, name, None)}
        others = sorted(scaled - _read_by(own))
        is_same, why = (
            not others,
            f"do not follow {', '.join(others)}, as a {sibling.__name__} does",
        )
    if not is_same:
        raise UnsupportedModelError(
            f"its text cannot be taken out: the logits of a {own.__name__} {why}.",
            "Cut it as a whole: leave --text-only out.",
        )


def _decoder(model_class: Any, config: Mapping[str, Any]) -> Any:
    """Return the class of a model's stack of layers, built without weights."""
    import torch

    with torch.device("meta"):
        decoder = model_class._from_config(model_config(model_class, config)).get_decoder()
    return type(decoder.get_decoder())  # some give a language model, which has one of its own


def _read_by(model_class: Any) -> set[str]:
    """Return the names of all attributes that a class reads while it computes logits."""
    return set(inspect.unwrap(model_class.forward).__code__.co_names)


def _sibling(own: Any, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class of the text alone, and its config."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    whole = model_config(own, config)
    text = whole.get_text_config(decoder=True)
    model_type = _SAME.get(text.model_type, text.model_type)
    found = type(AutoConfig.for_model(model_type)) if model_type in _SAME.values() else type(text)
    sibling: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(found, None)
    if sibling is None or sibling is own:
        raise UnsupportedModelError(
            f"transformers has no class for the text of a {own.__name__} alone.",
            "Cut it as a whole: leave --text-only out.",
        )
    section = text_config(config)
    fields = dict(section) if section is not config else _of_text(config)
    fields |= {key: config[key] for key in _SHARED if key in config and key not in fields}
    fields |= {"model_type": model_type, "architectures": [sibling.__name__]}
    fields |= _ALWAYS.get(text.model_type, {})
    tied = getattr(whole, "tie_word_embeddings", None)
    tied = getattr(text, "tie_word_embeddings", None) if tied is None else tied
    fields["tie_word_embeddings"] = bool(tied)
    return sibling, _without_axes(fields)


def _of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that has those of its text at the top, as Qwen2-VL's."""
    others = ("vision", "image", "video", "audio")
    return {k: v for k, v in config.items() if not any(word in k for word in others)}


def _without_axes(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out how rotary positions are split among time, height and width."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = fields.get(key)
        if isinstance(rope, dict) and "mrope" in str(rope):
            kept = {k: v for k, v in rope.items() if "mrope" not in k}
            kept = {k: "default" if v == "mrope" else v for k, v in kept.items()}
            scales = key == "rope_parameters" or any(v != "default" for v in kept.values())
            fields[key] = kept if scales else None
    return fields


def _names(names: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Return the names of the text's tensors by what they are called without its module."""
    parts = prefix.split(".")
    module = next((part for part in parts if part in _MODULES), None)
    if module is None:  # text and towers lie side by side
        return {name: name for name in names if not is_tower(name)}
    path = ".".join(parts[: parts.index(module) + 1]) + "."
    outer = path.removesuffix(f"{module}.")
    found = {outer + name[len(path) :]: name for name in names if name.startswith(path)}
    heads = {name: name for name in names if name.endswith(_HEADS) and not is_tower(name)}
    return found | {new: old for new, old in heads.items() if old not in found.values()}
