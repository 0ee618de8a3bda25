"""Edit a config.json for a model cut to some of its layers, and list the edits.

The result is the reference's raw JSON with as few edits as the cut needs; unknown keys survive.
`config_fields` has the rules for the fields that depend on layers.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.errors import RecipeError, SourceError, UnsupportedModelError, escape
from inheritune.model_files.config_fields import (
    COUNTS,
    LEFT_ALONE,
    PREDICTION_LAYERS,
    RULES,
    Cut,
    is_number,
)
from inheritune.model_files.layers import attends, layer_kinds

# Multimodal models nest the config of their text model under one of these keys.
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
_MOST_LAYERS = 100_000

# Where these fields are missing, the class derives them by counting layers from the last one, so
# that a cut would change the first layers.
_MUST_BE_EXPLICIT = {
    **dict.fromkeys(
        ["beam", "gemma4", "gemma4_text", "gemma4_unified_text", "muse_glimmer", "muse_spark"],
        ("layer_types",),
    ),
    "gemma3n_text": ("num_kv_shared_layers",),
    "minicpm3": ("scale_depth",),
    "olmo_hybrid": ("layer_types",),
}
# Classes that compute with the number of layers, which no field can correct.
_CANNOT_BE_CUT = {
    "gpt_neox_japanese": "only its last layer has an attention bias",
    "minimax": "the decay of its attention depends on the number of layers",
}
_FEWEST = {"rwkv": (2, "its class divides by one less than the number of layers")}


@dataclass(frozen=True)
class Edit:
    """One changed field of a config."""

    key: str  # dotted path from the top
    before: Any
    after: Any  # value in the target; None also when the key was removed
    reason: str


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that describes the text model: most often all of it."""
    return _text_section(config)[1]


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that says that head and embedding are two tensors."""
    changed: dict[str, Any] = {**config, "tie_word_embeddings": False}
    for key in _TEXT:
        if isinstance(section := config.get(key), dict) and "tie_word_embeddings" in section:
            changed[key] = untied(section)
    return changed


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the number of positions that a model was made for; None if its config has none."""
    section = text_config(config)
    positions = section.get("max_position_embeddings") or section.get("n_positions")
    return positions if isinstance(positions, int) else None


def has_rotary_positions(config: Mapping[str, Any]) -> bool:
    """Tell whether positions can be computed beyond the number that the model was made for."""
    return any("rope" in key or "rotary" in key for key in text_config(config))


def _text_section(config: Mapping[str, Any], path: str = "") -> tuple[str, Mapping[str, Any]]:
    """Find the innermost text section that counts layers, and the dotted path to it."""
    for key in _TEXT:
        if isinstance(section := config.get(key), dict):
            inner = _text_section(section, f"{path}{key}.")
            if _counts(inner[1]):
                return inner
    return path, config


def _counts(section: Mapping[str, Any]) -> dict[str, int]:
    return {key: section[key] for key in COUNTS if type(section.get(key)) is int}


def counts_layers(section: Mapping[str, Any]) -> bool:
    """Tell whether a section of a config states its number of layers, or their kinds."""
    kinds = section.get("layers_block_type")  # nemotron_h may have no count at all
    return bool(_counts(section)) or (isinstance(kinds, list) and bool(kinds))


def layer_count(config: Mapping[str, Any]) -> int:
    """Return the number of layers of the text model.

    Raises:
        SourceError: The config names no count, an absurd one, or two different ones.
    """
    section = text_config(config)
    counts = _counts(section)
    if section.get("model_type") == "longcat_flash" and "num_layers" in counts:
        counts = {"num_layers": counts["num_layers"]}  # each holds two of num_hidden_layers
    if not counts and isinstance(kinds := section.get("layers_block_type"), list) and kinds:
        return len(kinds)  # nemotron_h may have no count at all
    if not counts:
        others = [k for k, v in section.items() if "layer" in k and type(v) is int]
        raise SourceError(
            f"config.json gives no number of layers: none of {', '.join(COUNTS)}.",
            "Write num_hidden_layers out" + (f"; is it {escape(others[0])}?" if others else "."),
        )
    if len(set(counts.values())) > 1:
        raise SourceError(
            f"config.json gives different numbers of layers: {counts}.",
            "Correct it: each is to be the number of layers that the weights have.",
        )
    layers = next(iter(counts.values()))
    if not 1 <= layers <= _MOST_LAYERS:
        raise SourceError(
            f"config.json gives {layers:,} layers; that cannot be.",
            f"Correct {' and '.join(counts)}: from 1 to {_MOST_LAYERS:,}.",
        )
    return layers


def announced_prediction_layers(config: Mapping[str, Any]) -> int:
    """Return the number of multi-token-prediction layers that the config states, or 0."""
    section = text_config(config)
    values = [section.get(name) for name in PREDICTION_LAYERS]
    return max((v for v in values if type(v) is int), default=0)


def cut_config(
    config: Mapping[str, Any], layers: int | Sequence[int]
) -> tuple[dict[str, Any], list[Edit]]:
    """Edit a copy of a config for a model cut to some of its layers.

    Args:
        config: Raw JSON of the reference.
        layers: Number of first layers to keep, or layer indices from 0, ascending.

    Returns:
        The target's config, and the edits in file order.

    Raises:
        RecipeError: ``layers`` is out of range.
        UnsupportedModelError: A field depends on the number of layers in a way that no edit keeps.
    """
    total = layer_count(config)
    count = layers if isinstance(layers, int) else len(layers)
    if not 1 <= count <= total:
        raise RecipeError(
            f"cannot keep {count} layers: the reference has {total}.",
            f"Choose layers between 1 and {total}.",
        )
    cut = Cut(tuple(range(layers)) if isinstance(layers, int) else tuple(layers), total)
    edited = copy.deepcopy(dict(config))
    path, section = _text_section(edited)
    if cut.layers < cut.total:
        _refuse_family(section, cut)
    _refuse_no_attention(section, cut)
    _refuse_vision_depth(edited, cut)
    edits = list(_edit(section, path, cut))
    if path:  # older multimodal configs repeat the text model's fields at the top
        edits += _edit(edited, "", cut, nested=False)
    if section.get("model_type") == "longcat_flash" and "num_hidden_layers" in section:
        edits += _replace(section, path, "num_hidden_layers", 2 * cut.layers, "two for each layer")
    return edited, edits


# --- cuts that no edit can make right ---


def _refuse_family(section: Mapping[str, Any], cut: Cut) -> None:
    model_type = str(section.get("model_type"))
    this_cut = f"{model_type} cannot be cut to {cut.layers} of {cut.total} layers"
    if model_type in _CANNOT_BE_CUT:
        raise UnsupportedModelError(
            f"{this_cut}: {_CANNOT_BE_CUT[model_type]}.", "Choose another reference."
        )
    for name in _MUST_BE_EXPLICIT.get(model_type, ()):
        if name not in section or (section[name] is None and name == "layer_types"):
            raise UnsupportedModelError(
                f"config.json leaves {name} to the {model_type} class, which counts from the end.",
                f"Write {name} out, as AutoConfig shows it for the whole model.",
            )
    if model_type == "zamba2" and not cut.is_prefix:
        raise UnsupportedModelError(
            "zamba2 numbers the adapters of its shared layers by their places.",
            "Choose first layers only.",
        )
    fewest, reason = _FEWEST.get(model_type, (1, ""))
    if cut.layers < fewest:
        raise UnsupportedModelError(f"{this_cut}: {reason}.", f"Choose at least {fewest} layers.")
    if model_type.startswith("gemma4"):
        # The class turns the last layer into one of full attention, with heads of another size.
        kinds = section.get("layer_types")
        kinds = kinds if isinstance(kinds, list) else []
        full = [i + 1 for i, kind in enumerate(kinds) if kind == "full_attention"]
        if cut.kept[-1] + 1 not in full:
            raise UnsupportedModelError(
                f"{model_type} makes its last layer one of full attention; layer {cut.kept[-1]} "
                "of the reference is not.",
                f"Choose first layers among {', '.join(map(str, full))}.",
            )


def _refuse_no_attention(section: Mapping[str, Any], cut: Cut) -> None:
    """Refuse a hybrid cut to layers without attention, which decide how long its cache is."""
    model_type = section.get("model_type")
    kinds = layer_kinds(section, cut.total) or []
    attending = [i for i, kind in enumerate(kinds) if attends(kind)]
    needed = 2 if model_type == "zamba" else 1  # its class ties the others to the first
    remaining = [i for i in attending if i in cut.kept]
    if len(attending) >= needed > len(remaining):
        last = attending[needed - 1]
        raise UnsupportedModelError(
            f"{model_type} needs {'a layer' if needed == 1 else '2 layers'} with attention; "
            f"among the {cut.layers} to keep there is {'one' if remaining else 'none'}.",
            f"Choose at least the first {last + 1} layers.",
        )


def _refuse_vision_depth(config: Mapping[str, Any], cut: Cut) -> None:
    # Entry i is the layer of the vision tower that feeds text layer i.
    vision = config.get("vision_config")
    indices = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    if isinstance(indices, list) and cut.layers < len(indices):
        raise UnsupportedModelError(
            f"the vision tower feeds the first {len(indices)} layers; {cut.layers} are too few.",
            f"Choose at least {len(indices)} layers.",
        )


# --- edits ---


def _edit(section: Any, path: str, cut: Cut, nested: bool = True) -> Iterator[Edit]:
    """Edit a section in place; without ``nested``, only its own fields that have a rule."""
    for key, value in list(section.items()):
        if key in LEFT_ALONE or (not nested and key not in RULES):
            continue
        # Rules by name come first: a list of layer numbers may happen to have one for each layer.
        if key in RULES:
            rule, reason = RULES[key]
            try:
                after = rule(value, cut)
            except UnsupportedModelError as error:
                message = f"{path}{key} in config.json {error.message}"
                raise UnsupportedModelError(message, error.hint) from error
            yield from _replace(section, path, key, after, reason)
        # Prediction layers read the last hidden state of all layers, so they go with the cut.
        elif key.startswith("mtp_") and isinstance(value, list | str):
            del section[key]
            yield Edit(path + key, value, None, "multi-token-prediction layers are dropped")
        # A list as long as there are layers is taken for one entry per layer; a text is not:
        # "silu" has as many letters as a small model has layers.
        elif isinstance(value, list) and len(value) == cut.total > cut.layers:
            reason = "a list as long as there are layers"
            yield from _replace(section, path, key, [value[i] for i in cut.kept], reason)
        # Anything else that looks like layer numbers would be silently wrong.
        elif _looks_like_layers(key, value, cut):
            raise UnsupportedModelError(
                f"the field {path}{key} of config.json seems to speak of layers, but is not known: "
                f"{str(value)[:80]}.",
                "Report it with the model's name: it needs a rule.",
            )
        # A nested section with a count of its own is another model, such as a vision tower.
        elif isinstance(value, dict) and not _counts(value):
            yield from _edit(value, f"{path}{key}.", cut)


def _replace(section: Any, path: str, key: str, after: Any, reason: str) -> Iterator[Edit]:
    before = section[key]
    if after != before:
        section[key] = after
        yield Edit(path + key, before, after, reason)


def _looks_like_layers(key: str, value: Any, cut: Cut) -> bool:
    """Tell whether a field named after layers holds ascending layer numbers, as list or keys."""
    if "layer" not in key or cut.layers == cut.total or not value:
        return False
    if isinstance(value, dict):
        if not all(is_number(str(k)) for k in value):
            return False
        value = [int(k) for k in value]
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        return False
    return value == sorted(set(value)) and value[0] >= 0 and value[-1] < cut.total
