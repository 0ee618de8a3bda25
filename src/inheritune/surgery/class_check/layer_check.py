"""Compare the layers of two models in everything that decides what they compute, except weights."""

from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import Any

from inheritune.errors import SourceError, UnsupportedModelError, escape, first_line, sentence
from inheritune.model_files.layers import is_tower

_SPLIT = ("embed_tokens_per_layer", "per_layer_model_projection")
# Attributes that say what other layers read from a layer, and where else its weights are used.
# They do not change what it computes itself.
_FOR_OTHERS = {"store_full_length_kv", "num_fwd_mem_blocks", "layer_block_map", "layer_dic"}
# Attributes that hold a layer's own index, which may change where layers move.
_INDEX_NAMES = {"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx"}


def model_config(model_class: Any, config: Mapping[str, Any]) -> Any:
    """Read a raw config as the class does."""
    return model_class.config_class.from_dict(with_floats(dict(config)))


def with_floats(value: Any) -> Any:
    """Restore the numbers of a raw config that JSON cannot express, as transformers does."""
    if isinstance(value, list):
        return [with_floats(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:  # the infinity of time_step_limit
        return float(value["__float__"])
    return {key: with_floats(item) for key, item in value.items()}


def compare_layers(
    model_class: Any,
    reference: Mapping[str, Any],
    target: Mapping[str, Any],
    prefix: str,
    layer_map: Sequence[int],
) -> None:
    """Refuse layers that would not compute what they do in the reference.

    Raises:
        UnsupportedModelError: A layer, or a part outside the layers, differs.
        SourceError: The class refuses one of the two configs.
    """
    whole = _build(model_class, reference, "the reference's config", "Correct its config.json.")
    others = "Choose other layers, or report it with the model's name."
    cut = _build(model_class, target, "the config it would be cut to", others)
    path = layer_list(whole, cut, prefix, len(layer_map))
    before, after = whole.get_submodule(path), cut.get_submodule(path)
    lengths = len(before), len(after)
    for place, layer in enumerate(layer_map):
        # Where layers move, others may take over what one keeps for those above it.
        ignored = _INDEX_NAMES if place != layer else _FOR_OTHERS
        _refuse_difference(before[layer], after[place], f"layer {layer}", lengths, ignored)
    _refuse_difference(whole, cut, "outside the layers,", lengths, set(), without=path)
    _refuse_broken_cache(whole, cut, len(layer_map))


def _build(model_class: Any, config: Mapping[str, Any], what: str, way_out: str) -> Any:
    import torch

    try:
        with torch.device("meta"):
            model = model_class._from_config(
                model_config(model_class, config), attn_implementation="eager"
            )
    except ImportError:
        raise
    except Exception as error:  # classes raise any type of error
        raise SourceError(
            f"{model_class.__name__} refuses {what}: {sentence(first_line(error))}", way_out
        ) from error
    return model.eval()


def layer_list(whole: Any, cut: Any, prefix: str, layers: int) -> str:
    """Find the path of the layers in both models: the module list whose length follows the cut.

    Raises:
        UnsupportedModelError: There is none, or more than one.
    """
    import torch

    lists = [
        (path, module, dict(cut.named_modules()).get(path))
        for path, module in whole.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    paths = [
        path
        for path, module, twin in lists
        if isinstance(twin, torch.nn.ModuleList) and len(twin) == layers and len(module) >= layers
    ]
    # A tower may have as many layers as are kept.
    paths = [path for path in paths if not is_tower(path)] or paths
    if len(paths) > 1:
        parts = prefix.rstrip(".").split(".")
        alike = {path: _common_end(path.split("."), parts) for path in paths}
        paths = [path for path in paths if alike[path] == max(alike.values())]
    if len(paths) != 1:
        raise UnsupportedModelError(
            f"{type(whole).__name__} has {len(paths) or 'no'} lists that could be the {layers} "
            f"layers under {prefix}",
            "Report it with the model's name.",
        )
    return str(paths[0])


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count


def _refuse_difference(
    whole: Any,
    cut: Any,
    where: str,
    lengths: tuple[int, int],
    ignored: set[str],
    without: str | None = None,
) -> None:
    before, after = (dict(_facts(module, ignored, without)) for module in (whole, cut))
    for key in [*before, *(key for key in after if key not in before)]:
        one, other = before.get(key, "nothing"), after.get(key, "nothing")
        if one == other or _follows_length(key, one, other, lengths):
            continue
        # A factor divided by the root of the number of layers and multiplied again: one rounding.
        if (
            isinstance(one, float)
            and isinstance(other, float)
            and isclose(one, other, rel_tol=1e-12)
        ):
            continue
        if "_adapter_list." in key and other == "nothing":  # adapters of layers cut off (zamba2)
            continue
        # Outside the layers, fewer kinds of layers need fewer tables, but never fewer weights.
        fewer = other == "nothing" and not key.endswith(".shape")
        if without is not None and (fewer or isinstance(one, list | dict)):
            continue
        raise UnsupportedModelError(
            f"{where} {key} would be {escape(other, 60)}; in the reference it is "
            f"{escape(one, 60)}.",
            "These layers cannot be cut out of this model as they are; choose others.",
        )


def _facts(module: Any, ignored: set[str], without: str | None) -> Iterator[tuple[str, Any]]:
    """Yield names and values of all that decides what a module computes, except its weights."""
    for path, part in module.named_modules():
        if without is not None and (path == without or path.startswith(f"{without}.")):
            continue
        dot = f"{path}." if path else ""
        yield f"{dot}class", type(part).__name__
        for name, value in vars(part).items():
            if not name.startswith("_") and name not in ignored and _is_plain(value):
                yield f"{dot}{name}", value
        for name, tensor in part.named_parameters(recurse=False):
            yield f"{dot}{name}.shape", tuple(tensor.shape)
        for name, tensor in part.named_buffers(recurse=False):
            yield f"{dot}{name}.buffer", tuple(tensor.shape)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 256 and all(map(_is_plain, value))
    if isinstance(value, dict):
        return len(value) <= 64 and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def _follows_length(key: str, one: Any, other: Any, lengths: tuple[int, int]) -> bool:
    """Tell whether a fact is just the number of layers, or a list with one entry per layer."""
    if any(name in key for name in _SPLIT):
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return (len(one), len(other)) == lengths
    return type(one) is type(other) is int and (one, other) == lengths


def _refuse_broken_cache(whole: Any, cut: Any, layers: int) -> None:
    # Some hybrids look for the first layer of a kind in their cache, and fail without one.
    if not (reason := _cache_fails(cut)) or _cache_fails(whole):
        return
    raise UnsupportedModelError(
        f"{type(cut).__name__} with {layers} layers fails when it uses its cache: {reason}",
        "Keep more layers: every kind of layer is needed at least once.",
    )


def _cache_fails(model: Any) -> str:
    import torch

    ids = torch.zeros((1, 4), dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True).past_key_values
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    except Exception as error:  # the caller compares with the reference, which may fail as well
        return first_line(error)
    return ""
