"""Check a config and a set of tensors against the model's class. Runs in `class_process`.

Models are built on the meta device, so no weight is made; no code of a model directory is run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from inheritune.errors import SourceError, escape, first_line
from inheritune.model_files.config_fields import PER_LAYER
from inheritune.model_files.model_class import find_class
from inheritune.surgery.class_check.layer_check import compare_layers, with_floats
from inheritune.surgery.class_check.meta_load import load_on_meta


def explicit_lists(config: Mapping[str, Any], layers: int) -> dict[str, list[Any]]:
    """Find the per-layer lists, by config field, that the class derives if the config omits them.

    Empty for a model that transformers does not know.
    """
    from transformers import AutoConfig

    if isinstance(find_class(config), str):
        return {}
    fields = {key: with_floats(value) for key, value in config.items() if key != "model_type"}
    try:
        class_config = AutoConfig.for_model(config["model_type"], **fields)
    except Exception as error:  # classes raise any type of error
        raise SourceError(
            f"config.json is refused by the {escape(config.get('model_type'))} class: "
            f"{first_line(error)}"
        ) from error
    silent = [key for key in PER_LAYER if config.get(key) is None]
    # A property cannot be written out: the class computes it at every access.
    kind, names = type(class_config), type(class_config).attribute_map
    stored = [k for k in silent if not isinstance(getattr(kind, names.get(k, k), None), property)]
    values = {key: getattr(class_config, key, None) for key in stored}
    return {
        key: list(value)
        for key, value in values.items()
        if isinstance(value, list | tuple) and len(value) == layers
    }


def counted_by_number(config: Mapping[str, Any], layers: int) -> list[str]:
    """Name the per-layer lists of a config that its class would not derive for so many layers.

    Engines that count layers by number instead of reading the list then compute something else.
    """
    stated = {key: config[key] for key in PER_LAYER if isinstance(config.get(key), list)}
    rest = {key: value for key, value in config.items() if key not in stated}
    try:
        derived = explicit_lists(rest, layers)
    except SourceError:  # the class needs the list, so every engine does
        return []
    return [key for key, value in stated.items() if key in derived and derived[key] != value]


def compare_cut(
    target: Mapping[str, Any],
    tensors: Mapping[str, Sequence[Any]],
    prefix: str,
    reference: Mapping[str, Any] | None = None,
    layer_map: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Compare a cut model with its reference, and its tensors with what its class needs.

    Args:
        tensors: Safetensors dtype and shape of the cut model's tensors, by name.
        prefix: Text before the layer number in those names.
        reference: Raw config of the reference; None: only the tensors are checked.
        layer_map: The reference's layer that each layer of the target is.

    Returns:
        The fields of `ask_class.ClassCheck`.
    """
    if isinstance(model_class := find_class(target), str):
        return {"summary": f"not checked: {model_class}", "tied": None, "unused": []}
    name = model_class.__name__
    # --- the layers, then the names of the weights, both without any values ---
    try:
        if reference is not None and layer_map is not None:
            compare_layers(model_class, reference, target, prefix, layer_map)
        loaded = load_on_meta(model_class, target, tensors)
    except ImportError as error:
        why = f"not checked: {name} needs a package: {first_line(error)}"
        return {"summary": why, "tied": None, "unused": []}
    if loaded.missing:
        way_out = "The reference lacks them, or its config is wrong (tie_word_embeddings?)."
        if loaded.unused:
            way_out += f" It holds other names, such as {escape(loaded.unused[0])}."
        raise SourceError(
            f"{name} would fill {len(loaded.missing)} weights at random, such as "
            f"{escape(loaded.missing[0])}.",
            way_out,
        )
    compared = "" if reference is None else ", layers as in the reference"
    summary = f"complete: {name}{compared}"
    return {"summary": summary, "tied": loaded.tied, "unused": loaded.unused}
