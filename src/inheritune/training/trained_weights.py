"""Freeze the weights that `train.only` does not name, and find what that saves.

Names: embeddings, head, norms, and layers in the grammar of `surgery.selection`.
"""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from inheritune.errors import RecipeError, escape
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import WAYS, LayerFacts
from inheritune.training.fsdp import layer_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def freeze_all_but(model: "PreTrainedModel", only: Sequence[str] | None) -> None:
    """Freeze every weight of a whole model that no name stands for; None: freeze nothing.

    Autograd then computes no gradient of what is frozen, nor of anything below the lowest trained
    weight. A head that is tied to the embedding is the embedding: both are trained.

    Raises:
        RecipeError: A name stands for nothing in this model.
    """
    if only is None:
        return
    parts = _parts(model)
    trained = {id(param) for name in only for param in _named(name, parts, layer_modules(model))}
    for param in model.parameters():
        param.requires_grad_(id(param) in trained)


def lowest_trained_layer(model: "PreTrainedModel") -> int:
    """Return the first layer that gradients pass through; the number of layers if there is none.

    0 if something outside of the layers is trained, unless it is a head of its own.
    """
    inside = [_ids(layer) for layer in layer_modules(model)]
    trained = {id(param) for param in model.parameters() if param.requires_grad}
    behind = _ids(model.get_output_embeddings()) - _ids(model.get_input_embeddings())
    if trained - behind - set().union(*inside):
        return 0
    return next((number for number, own in enumerate(inside) if own & trained), len(inside))


def _ids(module: nn.Module | None) -> set[int]:
    return {id(param) for param in _parameters(module)}


def _parts(model: "PreTrainedModel") -> dict[str, list[nn.Parameter]]:
    """The weights of each named part that the model has."""
    layers = {id(module) for layer in layer_modules(model) for module in layer.modules()}
    looked_up = [
        param
        for module in model.modules()
        if id(module) not in layers and type(module).__name__.endswith("Embedding")
        for param in module.parameters(recurse=False)
    ]
    norms = [
        param
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for param in module.parameters(recurse=False)
    ]
    parts = {
        "embeddings": [*_parameters(model.get_input_embeddings()), *looked_up],
        "head": _parameters(model.get_output_embeddings()),
        "norms": norms,
    }
    return {name: params for name, params in parts.items() if params}


def _named(
    name: str, parts: dict[str, list[nn.Parameter]], layers: Sequence[nn.Module]
) -> list[nn.Parameter]:
    if name in parts:
        return parts[name]
    there = f"There is {', '.join(parts)}, and layers 0-{len(layers) - 1}, such as last:1."
    try:
        chosen = choose_layers(name, LayerFacts(len(layers)))
    except RecipeError as error:
        close = difflib.get_close_matches(name.partition(":")[0], [*parts, *WAYS], n=1)
        hint = f"Did you mean {close[0]}? {there}" if close and close[0] != name else there
        reason = error.message.rstrip(".")
        raise RecipeError(f"only: {escape(name)} names nothing: {reason}.", hint) from error
    return [param for layer in (layers[i] for i in chosen) for param in layer.parameters()]


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
