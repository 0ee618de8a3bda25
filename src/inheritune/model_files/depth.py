"""Write the number of layers into a config that leaves it to its class."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.config import counts_layers, text_config
from inheritune.model_files.config_fields import COUNTS


def with_stated_depth(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that states its number of layers, by its class where it did not.

    transformers 4 left nested values out that are the class's own: LLaVA-1.5 says nothing of its 32
    layers. A config that the class cannot fill in either is returned as it is.

    Raises:
        SourceError: The number is a text or a fraction.
    """
    section = text_config(config)
    if counts_layers(section):
        return dict(config)
    for key in COUNTS:
        if (value := section.get(key)) is not None:
            raise SourceError(
                f"config.json gives {key} as {escape(repr(value))}, which is no integer.",
                f"Write it as one, such as {key}: 12.",
            )
    with suppress(Exception):  # classes raise any type; `layer_count` then says what is missing
        return _filled(config)
    return dict(config)


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    fields = {key: value for key, value in config.items() if key != "model_type"}
    typed = AutoConfig.for_model(str(config["model_type"]), **fields)
    text: Any = typed.get_text_config(decoder=True)
    key = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    stated = {key: int(text.num_hidden_layers)}
    if text is typed:
        return {**config, **stated}
    name = next(name for name, value in vars(typed).items() if value is text)
    return {**config, name: {**(config.get(name) or {}), **stated}}
