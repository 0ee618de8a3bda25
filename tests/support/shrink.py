"""A config of any model type made tiny: what its fields mean decides their small values.

Only fields that the class (or the given config) sets are changed, so that what is left to the class
stays left to it. Lists with an entry for each layer are made anew by the class, or cut.
"""

import copy
import dataclasses
from typing import Any

from support.small_values import ALWAYS, OVERRIDES, PATTERN_LAYERS, SMALL

__all__ = ["FIRST_SPECIAL", "LAYERS", "VOCAB", "tiny_config", "tiny_settings"]

LAYERS = 4
VOCAB = 128
FIRST_SPECIAL = 100  # token ids from here on are images, sounds and the like
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
_TOWER_LAYERS = 2


def tiny_config(model_type: str, layers: int = 0) -> Any:
    """A config of a type with small sizes and few layers, as its class builds it.

    Args:
        model_type: Key of transformers' config mapping.
        layers: How many; 0: enough for a whole pattern of layer kinds.
    """
    from transformers import CONFIG_MAPPING

    layers = layers or PATTERN_LAYERS.get(model_type, LAYERS)
    settings = _shrunk(CONFIG_MAPPING[model_type], model_type, layers)
    settings.pop("model_type", None)
    return CONFIG_MAPPING[model_type](**settings)


def tiny_settings(given: dict[str, Any], layers: int = 0) -> dict[str, Any]:
    """A config.json as it was released, made tiny and otherwise left in its own words."""
    from transformers import CONFIG_MAPPING

    model_type = given["model_type"]
    layers = layers or PATTERN_LAYERS.get(model_type, LAYERS)
    known = {k: v for k, v in given.items() if k != "quantization_config"}  # new weights are not
    return _shrunk(CONFIG_MAPPING[model_type], model_type, layers, copy.deepcopy(known))


def _shrunk(
    config_class: type, model_type: str, layers: int, given: dict[str, Any] | None = None
) -> dict[str, Any]:
    settings = {} if given is None else given
    before = _depth(config_class, settings)
    fields = _defaults(config_class) | settings
    for name, default in fields.items():
        if name in ALWAYS:
            settings[name] = ALWAYS[name]
        elif name in _COUNTS and type(default) is int:
            settings[name] = layers
        elif name in SMALL and default is not None:
            settings[name] = _like(default, SMALL[name])
        elif name.endswith(("_token_id", "_token_index")) and default is not None:
            settings[name] = _token(name, default, list(fields))
        elif name in settings and isinstance(default, list) and before and len(default) >= before:
            settings[name] = default[:layers]
        elif isinstance(default, dict) and name in settings:
            settings[name] = _shrunk_rope(default) if "rope" in name else default
    for name, spec in (getattr(config_class, "sub_configs_defaults", None) or {}).items():
        settings[name] = _nested(name, spec, settings.get(name), layers)
    _merge(settings, copy.deepcopy(OVERRIDES.get(model_type, {})))
    if "kv_lora_rank" in fields and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = settings["num_attention_heads"]  # latent attention
    return settings


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if name.endswith("_config") and isinstance(settings.get(name), dict):
            _merge(settings[name], value)
        else:
            settings[name] = value


def _nested(name: str, spec: Any, given: Any, layers: int) -> dict[str, Any]:
    """The config of a part: a text model with as many layers as asked for, a tower with two."""
    from transformers import CONFIG_MAPPING

    sub_class = getattr(spec, "config_class", spec)
    sub_type = getattr(spec, "model_type", None) or ""
    if given is None:
        given = copy.deepcopy(getattr(spec, "init_kwargs", {}))
    if sub_class.__name__ == "AutoConfig":
        sub_class = CONFIG_MAPPING[sub_type]
    own = name == "text_config"
    inner = _shrunk(sub_class, sub_type, layers if own else _TOWER_LAYERS, given)
    return ({"model_type": sub_type} if sub_type else {}) | inner


def _depth(config_class: type, settings: dict[str, Any]) -> int:
    for name in _COUNTS:
        value = settings.get(name)
        if type(value) is int:
            return value
    return 0


def _defaults(config_class: type) -> dict[str, Any]:
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(config_class)
    }


def _like(default: Any, small: Any) -> Any:
    """A list where the class wants one."""
    if isinstance(default, list | tuple) and not isinstance(small, list | tuple):
        return [small] * len(default)
    return small


def _token(name: str, default: Any, names: list[str]) -> Any:
    basic = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name in basic:
        return [basic[name]] * len(default) if isinstance(default, list) else basic[name]
    return FIRST_SPECIAL + names.index(name) % (VOCAB - FIRST_SPECIAL)


def _shrunk_rope(rope: dict[str, Any]) -> dict[str, Any]:
    small = {"original_max_position_embeddings": 32}
    shrunk: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            shrunk[name] = _shrunk_rope(value)
        elif name in ("short_factor", "long_factor"):
            shrunk[name] = value[:4]
        else:
            shrunk[name] = small.get(name, value)
    return shrunk
