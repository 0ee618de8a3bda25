"""Refuse a repair before the model is read: by the method, the layers, and the model's class."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from inheritune.errors import RecipeError, escape
from inheritune.model_files.config import cut_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.shapes import meta_model, typed_config
from inheritune.repair.places import repaired_places
from inheritune.surgery.class_check.ask_class import ask_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("sequential", "linear", "scale")
_MOST_PARAMS = 10**9  # 4 GB; a larger layer is judged when the model is loaded
_TOKENS = 16


def refuse_repair(
    reference: ModelDirectory, layer_map: Sequence[int], method: str, parts: str = "all"
) -> None:
    """Refuse a repair that is impossible, judged without a weight.

    Raises:
        RecipeError: There is no such method, or parts of the layers are fresh.
        UnsupportedModelError: The method changes nothing at these layers.
    """
    if method not in METHODS:
        raise RecipeError(
            f"unknown repair {escape(method)!r}.", f"Choose none, {', '.join(METHODS)}."
        )
    if parts != "all":
        raise RecipeError(
            f"parts: {escape(parts)} leaves weights fresh, which no repair can fit.",
            "Leave parts or repair out.",
        )
    repaired_places(layer_map, reference.layers, method)


def refuse_class(reference: ModelDirectory, layer_map: Sequence[int], method: str) -> None:
    """Refuse a class without a projection that a repair can be folded into.

    Only the first layer that the repair would change is tried, with fresh weights; those of the
    reference are judged one by one when they are repaired.

    Raises:
        UnsupportedModelError: There is none, or the class does not run its layers one by one.
    """
    if places := repaired_places(layer_map, reference.layers, method):
        config, _ = cut_config(reference.config, [layer_map[places[0]]])
        ask_class(f"{__name__}:try_layer", config=config)


def try_layer(config: Mapping[str, Any]) -> None:
    """Look for the projection in a class with one fresh layer; in the class's process.

    Raises:
        UnsupportedModelError: See `refuse_class`.
    """
    # Imported here, as by `_fresh_layer`: the process that asks is spared torch.
    import torch

    from inheritune.repair.layer_passes import LayerPasses
    from inheritune.repair.projection import find_projection

    if (model := _fresh_layer(config)) is None:
        return
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, _TOKENS + 1)[None] % vocabulary
    passes = LayerPasses(model, 1, ids)
    find_projection(passes, 0, ids, passes.embed(ids))


def _fresh_layer(config: Mapping[str, Any]) -> "PreTrainedModel | None":
    """Build the class with one layer; None where it is too large, or cannot be built."""
    import torch
    from transformers import AutoModelForCausalLM

    # Whether a cut can be built is judged by others, with the reason.
    with suppress(Exception), torch.random.fork_rng(devices=[]):
        typed = typed_config(config)
        if sum(p.numel() for p in meta_model(typed).parameters()) > _MOST_PARAMS:
            return None
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            typed, dtype=torch.float32, trust_remote_code=False
        )
        return model
    return None
