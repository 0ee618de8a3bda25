"""Grow a trained target: add the next layers of its reference on top of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import numbered
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import check_cut
from inheritune.surgery.plan import InheritPlan, plan_inherit, stored_dtype
from inheritune.surgery.record import conversion_facts
from inheritune.surgery.write import ModelPlan, Written, to_json, write_model
from inheritune.system.strict_json import MODEL_FILE, read_json_object


def grow(
    target: ModelDirectory, reference: ModelDirectory, layers: int, out: Path
) -> ModelDirectory:
    """Write a trained target with more of its reference's layers.

    All tensors of the target are kept bit for bit. The layers above them come from the reference,
    cast to the dtype of the target, so that trained fp32 weights are never rounded to the dtype
    that the reference was published in.

    Args:
        target: The first layers of the reference, trained.
        reference: The model the target was cut from; only its new layers are downloaded.
        layers: Number of layers of the grown target: above the target's, at most the reference's.

    Raises:
        RecipeError: ``layers`` is not between the target's and the reference's.
        UnsupportedModelError: A weight outside the layers has a part for each of them, or a layer
            would not compute what it does in the reference.
        SourceError: A file ended while it was read, or the two belong to different models.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1, where trained layers are kept.
    """
    return write_model(out, _plan(target, reference, layers))


def check_grow(reference: ModelDirectory, layers: int) -> InheritPlan:
    """Plan the layers of a grown target from the reference's headers and config.

    Refuse a reference with weights outside its layers that have a part for each of them.
    """
    cut = plan_inherit(reference, layers)
    if any(tensor.source.pitch for tensor in cut.tensors):
        raise UnsupportedModelError(
            f"{reference.name} has weights outside its layers with a part for each of them.",
            "Grow by inheriting again (grow.weights: reinherit).",
        )
    return cut


def _plan(target: ModelDirectory, reference: ModelDirectory, layers: int) -> ModelPlan:
    if not target.layers < layers <= reference.layers:
        raise RecipeError(
            f"cannot grow {target.layers} layers to {layers}: the reference has "
            f"{reference.layers}.",
            f"Choose between {target.layers + 1} and {reference.layers}.",
        )
    _refuse_moved_layers(target)
    cut = check_grow(reference, layers)
    trained = [TargetTensor(t.name, t, t.dtype) for t in target.tensors.values()]
    new = list(_new_layers(cut, target, reference))
    tensors = [*trained, *new]
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
        records=partial(_records, target, reference, cut),
    )


def _refuse_moved_layers(target: ModelDirectory) -> None:
    path = target.path / "inherit.json"
    if not path.is_file():  # a trained target may have none
        return
    record = read_json_object(path, MODEL_FILE.times(10), "the record")
    layer_map = record.get("layer_map")
    if "repair" in record:
        raise UnsupportedModelError(
            f"{target.name} was repaired to do without the layers above it.",
            "Only a target that was cut without a repair can grow.",
        )
    if layer_map is not None and layer_map != list(range(target.layers)):
        raise UnsupportedModelError(
            f"{target.name} does not have the first layers of its reference: {escape(layer_map)}.",
            "Only a target of first layers can grow.",
        )


def _new_layers(
    cut: InheritPlan, target: ModelDirectory, reference: ModelDirectory
) -> Iterator[TargetTensor]:
    """Yield the tensors of the layers to add, with the names and the dtype of the target."""
    prefix = reference.container.prefix
    reference_dtype = stored_dtype([tensor.source for tensor in cut.tensors])
    target_dtype = stored_dtype(list(target.tensors.values()))
    for tensor in cut.tensors:
        place = numbered(tensor.name)
        if place is None or place[0] != prefix or place[1] < target.layers:
            continue
        # A tensor that the reference stores in another dtype than the rest keeps its own.
        is_main = target_dtype is not None and tensor.dtype == reference_dtype
        yield replace(
            tensor,
            name=target.container.prefix + tensor.name.removeprefix(prefix),
            dtype=str(target_dtype) if is_main else tensor.dtype,
        )


def _records(
    target: ModelDirectory, reference: ModelDirectory, cut: InheritPlan, written: Written
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
        "grown_from": {"name": target.name, "layers": target.layers},
        "container": target.container.prefix,
        "mode": "copy",
        "dtype": None,
        "parts": "all",
        "config_edits": [],
        "check": written.check.summary,
        "tensors": {
            name: entry | {"from": "target" if name in target.tensors else "reference"}
            for name, entry in written.tensor_entries().items()
        },
    }
    return {"inherit.json": to_json(record)}
