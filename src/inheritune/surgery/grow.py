"""Give a trained target more layers of its reference, each at its place.

A layer map has the reference's index of each layer of a target, ascending. What a target was
trained to is kept: only layers that it does not have come from the reference.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import check_cut
from inheritune.surgery.origin import (
    as_cut_from,
    is_repaired,
    layer_map_of,
    refuse_other_reference,
)
from inheritune.surgery.plan import InheritPlan, plan_inherit, renamed, stored_dtype
from inheritune.surgery.record import conversion_facts
from inheritune.surgery.selection import check_selection, describe_selection
from inheritune.surgery.write import ModelPlan, Written, to_json, write_model
from inheritune.system.progress import Listener, silent


def grow(
    target: ModelDirectory,
    reference: ModelDirectory,
    layers: int | Sequence[int],
    out: Path,
    layer_map: Sequence[int] | None = None,
    target_layers: int | str | Sequence[int] | None = None,
) -> ModelDirectory:
    """Write a trained target with more of its reference's layers.

    All tensors of the target are kept bit for bit. The layers that it lacks come from the
    reference, cast to the dtype of the target, so that trained fp32 weights are never rounded to
    the dtype that the reference was published in.

    Args:
        target: Layers of the reference, trained.
        reference: The model the target was cut from; only its new layers are downloaded.
        layers: Layers of the reference that the grown target has, ascending; or their number, where
            both models have the first ones.
        layer_map: Of the target, where the caller knows it; None: as its record says.
        target_layers: The same, as a user states it; checked against the record.

    Raises:
        RecipeError: ``layers`` does not hold all that the target has, and more.
        UnsupportedModelError: A weight outside the layers has a part for each of them, a layer
            would not compute what it does in the reference, or the target was repaired.
        SourceError: A file ended while it was read, or the two belong to different models.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1, where trained layers are kept.
    """
    if layer_map is None and is_repaired(target):
        raise UnsupportedModelError(
            f"{target.name} was repaired to do without the layers that it lacks.",
            "Only a target that was cut without a repair can grow.",
        )
    reference = as_cut_from(target, reference)
    if layer_map is None:
        refuse_other_reference(target, reference)
        layer_map = layer_map_of(target, reference, target_layers)
    larger = _larger_map(layer_map, reference, layers)
    return write_model(out, _plan(target, reference, layer_map, larger))


def patch(
    target: ModelDirectory,
    reference: ModelDirectory,
    layers: Sequence[int],
    out: Path,
    layer_map: Sequence[int] | None = None,
    on_progress: Listener = silent,
) -> ModelDirectory:
    """Write a target with untrained layers of its reference put back, to be used as it is.

    A layer of the target gives way to the reference's where all layers that it stood for are back:
    those between it and the next one. All other tensors of the target are kept bit for bit.

    Args:
        target, reference, layer_map: As for `grow`; the target may have been repaired.
        layers: Layers of the reference that the patched model has, ascending.

    Raises:
        RecipeError: ``layers`` does not hold all that the target has, and more.
        UnsupportedModelError: As for `grow`.
        SourceError: As for `grow`, or the target was cut from another reference.

    Source: Kangaslahti et al., Boomerang distillation, arXiv 2510.05064.
    """
    reference = as_cut_from(target, reference)
    if layer_map is None:
        refuse_other_reference(target, reference)
    own = layer_map_of(target, reference) if layer_map is None else tuple(layer_map)
    larger = _larger_map(own, reference, layers)
    gone = giving_way(own, larger, reference.layers)
    plan = _plan(target, reference, own, larger, gone, is_patched=True)
    return write_model(out, plan, on_progress)


def giving_way(own: Sequence[int], larger: Collection[int], total: int) -> set[int]:
    """List the layers of a target whose place the reference's own take in a patched model.

    Args:
        own: Layer map of the target.
        larger: Layers of the reference that the patched model has.
        total: Number of layers of the reference.
    """
    following = [*own[1:], total]
    return {
        layer
        for layer, after in zip(own, following, strict=True)
        if after > layer + 1 and {*range(layer + 1, after)} <= {*larger}
    }


def check_grow(reference: ModelDirectory, layers: int | Sequence[int]) -> InheritPlan:
    """Plan the layers of a grown target from the reference's headers and config.

    Refuse a reference with weights outside its layers that have a part for each of them.
    """
    cut = plan_inherit(reference, layers, by_class=True)
    if any(tensor.source.pitch for tensor in cut.tensors):
        raise UnsupportedModelError(
            f"{reference.name} has weights outside its layers with a part for each of them.",
            "Grow by inheriting again (grow.weights: reinherit).",
        )
    return cut


def _larger_map(
    own: Sequence[int], reference: ModelDirectory, layers: int | Sequence[int]
) -> tuple[int, ...]:
    """Return the layer map of the grown target."""
    if isinstance(layers, int):
        if list(own) != list(range(len(own))):
            raise RecipeError(
                f"the target has {describe_selection(own)} of its reference, and {layers} does not "
                "say which are to come back.",
                f"List all that it is to have, such as {list(range(max(own) + 1))}.",
            )
        if not len(own) < layers <= reference.layers:
            raise RecipeError(
                f"cannot grow {len(own)} layers to {layers}: the reference has {reference.layers}.",
                f"Choose between {len(own) + 1} and {reference.layers}.",
            )
        layers = range(layers)
    larger = check_selection(layers, reference.layers)
    if not set(own) < set(larger):
        missing = sorted({*own} - {*larger})
        lacks = f"lacks {describe_selection(missing)}" if missing else "has no more"
        raise RecipeError(
            f"{describe_selection(larger)} {lacks} of those that the target has.",
            f"List {describe_selection(own)}, and more.",
        )
    return larger


def _plan(
    target: ModelDirectory,
    reference: ModelDirectory,
    own: Sequence[int],
    larger: Sequence[int],
    gives_way: Collection[int] = (),
    is_patched: bool = False,
) -> ModelPlan:
    """Plan a grown target, or a patched one.

    Args:
        own: Layers of the reference that the target has.
        larger: Those that the grown one has, all of ``own`` among them.
        gives_way: Those of ``own`` that come from the reference instead.
    """
    cut = check_grow(reference, larger)
    places = {layer: larger.index(number) for layer, number in enumerate(own)}
    replaced = {layer for layer, number in enumerate(own) if number in gives_way}
    kept = [
        TargetTensor(renamed(tensor.name, target.container, places), tensor, tensor.dtype)
        for tensor in target.tensors.values()
        if target.container.layer_of(tensor.name) not in replaced
    ]
    new = list(_new_layers(cut, target, reference, {*larger} - {*own} | {*gives_way}))
    tensors = [*kept, *new]
    # The dtype is the target's: it may have been trained in another one than the reference's.
    dtypes = {key: target.config[key] for key in ("dtype", "torch_dtype") if key in target.config}
    config = cut.config | dtypes
    return ModelPlan(
        source=target,
        reference=reference,
        config=config,
        tensors=tensors,
        downloads=[tensor.source for tensor in new],
        check=partial(
            check_cut, reference, cut.layer_map, config, tensors, target.container.prefix
        ),
        records=partial(_records, target, reference, own, cut, {t.name for t in new}, is_patched),
    )


def _new_layers(
    cut: InheritPlan, target: ModelDirectory, reference: ModelDirectory, layers: Collection[int]
) -> Iterator[TargetTensor]:
    """Yield the tensors of some of the reference's layers, in the target's names and dtype."""
    prefix = reference.container.prefix
    reference_dtype = stored_dtype([tensor.source for tensor in cut.tensors])
    target_dtype = stored_dtype(list(target.tensors.values()))
    for tensor in cut.tensors:
        if reference.container.layer_of(tensor.source.name) not in layers:
            continue
        name = tensor.name
        if name.startswith(prefix):
            name = target.container.prefix + name.removeprefix(prefix)
        # A tensor that the reference stores in another dtype than the rest keeps its own.
        is_main = target_dtype is not None and tensor.dtype == reference_dtype
        yield replace(tensor, name=name, dtype=str(target_dtype) if is_main else tensor.dtype)


def _records(
    target: ModelDirectory,
    reference: ModelDirectory,
    own: Sequence[int],
    cut: InheritPlan,
    new: Collection[str],
    is_patched: bool,
    written: Written,
) -> Mapping[str, bytes]:
    record = {
        "format": 2,
        "inheritune": __version__,
        "reference": {
            "name": reference.name,
            "revision": reference.revision,
            "layers": reference.layers,
        }
        | conversion_facts(reference),
        "layers": len(cut.layer_map),
        "layer_map": list(cut.layer_map),
        "grown_from": {"name": target.name, "layers": target.layers, "layer_map": list(own)},
        **({"patched": True} if is_patched else {}),
        **({"text_only": True} if reference.text_only else {}),
        "container": target.container.prefix,
        "mode": "copy",
        "dtype": None,
        "parts": "all",
        "config_edits": [],
        "check": written.check.summary,
        "tensors": {
            name: entry | {"from": "reference" if name in new else "target"}
            for name, entry in written.tensor_entries().items()
        },
    }
    return {"inherit.json": to_json(record)}
