"""Find the class of transformers that stands for a model: one answer, for every command."""

from collections.abc import Mapping
from typing import Any

from inheritune.errors import escape, first_line


def find_class(config: Mapping[str, Any]) -> Any:
    """Return the transformers class of a model, or a text that says why there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return "config.json names no model_type"
    try:
        config_class = type(AutoConfig.for_model(model_type))
    except (ValueError, KeyError):
        return f"transformers does not know the model type {escape(model_type)}"
    except ImportError as error:
        return f"{escape(model_type)} needs a package: {first_line(error)}"
    if named := named_class(config, config_class):
        return named
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str) and config.get("auto_map"):
        return f"the class {escape(names[0])} comes with the model, and its code is not run"
    by_type = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    return by_type or f"transformers has no causal language model of type {escape(model_type)}"


def named_class(config: Mapping[str, Any], config_class: type) -> Any:
    """Return the class that config.json names, such as one that also reads images.

    Args:
        config_class: The class of transformers for its model type.

    Returns:
        None if it names none, or one of another model type or from outside transformers.
    """
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not name.isidentifier():
        return None
    named = getattr(transformers, name, None)
    # Without a package such as torchvision, the name stands for something that is no model.
    is_model = isinstance(named, type) and getattr(named, "config_class", None) is config_class
    return named if is_model else None
