"""A trained target with the next layers of its reference on top of its own."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError, escape
from inheritune.model_files.copy import copy_side_files, write_file
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.layers import numbered
from inheritune.model_files.write import TargetTensor, split_into_shards
from inheritune.surgery.class_check.ask_class import check_cut
from inheritune.surgery.plan import InheritPlan, plan_inherit, stored_dtype
from inheritune.surgery.write import describe_tensor, to_json, write_weights
from inheritune.system.files import published
from inheritune.system.strict_json import MODEL_FILE, read_json_object

__all__ = ["check_grow", "grow"]


def grow(
    target: ModelDirectory, reference: ModelDirectory, layers: int, out: Path
) -> ModelDirectory:
    """Write a trained target with more of its reference's layers.

    Everything of the target is kept, bit for bit: its layers, and what is outside of them. The
    layers above come from the reference, in the dtype of the target: trained fp32 weights are never
    rounded to what the reference was published in.

    Args:
        target: The first layers of the reference, trained.
        reference: Has more layers.
        layers: How many the grown target has; above the target's.
        out: Does not exist, or is empty.

    Returns:
        The grown target, opened.

    Raises:
        RecipeError: ``layers`` is not between the target's and the reference's.
        UnsupportedModelError: A weight outside the layers has a part for each of them, or a layer
            would not compute what it does in the reference.
        SourceError: A file broke while it was read, or the two belong to different models.
        MachineError: The disk is full or read-only.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1, where trained layers are kept.
    """
    if not target.layers < layers <= reference.layers:
        raise RecipeError(
            f"cannot grow {target.layers} layers to {layers}: the reference has "
            f"{reference.layers}.",
            f"Choose between {target.layers + 1} and {reference.layers}.",
        )
    _refuse_moved_layers(target)
    plan = check_grow(reference, layers)
    new = list(_new_layers(plan, target, reference))
    kept = [TargetTensor(t.name, t, t.dtype) for t in target.tensors.values()]
    config = plan.config | {
        key: target.config[key] for key in ("dtype", "torch_dtype") if key in target.config
    }
    with published(out) as staging, ThreadPoolExecutor(3) as background:
        prefix = target.container.prefix
        gate = background.submit(check_cut, reference, plan.kept, config, [*kept, *new], prefix)
        reference.download(tensor.source for tensor in new)
        shards = split_into_shards([*kept, *new])
        files = write_weights(target, shards, staging, background)
        write_file(staging / "config.json", to_json(config))
        copy_side_files(target.path, staging)
        trained = {tensor.name for tensor in kept}
        record = _record(target, reference, plan, gate.result()) | {
            "tensors": {
                tensor.name: describe_tensor(tensor, file, False)
                | {"from": "target" if tensor.name in trained else "reference"}
                for file in files
                for tensor in file.tensors
            }
        }
        write_file(staging / "inherit.json", to_json(record))
    return open_model(str(out))


def check_grow(reference: ModelDirectory, layers: int) -> InheritPlan:
    """Refuse a reference of which no trained target can be grown, from headers and config alone.

    Args:
        reference: Would give the layers above the target's.
        layers: Of the grown target.

    Returns:
        How that many first layers of it are inherited.

    Raises:
        UnsupportedModelError: A weight outside the layers has a part for each of them.
    """
    plan = plan_inherit(reference, layers)
    if any(tensor.source.pitch for tensor in plan.tensors):
        raise UnsupportedModelError(
            f"{reference.name} has weights outside its layers with a part for each of them.",
            "Grow by inheriting again (grow.weights: reinherit).",
        )
    return plan


def _refuse_moved_layers(target: ModelDirectory) -> None:
    record = target.path / "inherit.json"  # a trained target may have none
    if not record.is_file():
        return
    kept = read_json_object(record, MODEL_FILE.times(10), "the record").get("layer_map")
    if kept is not None and kept != list(range(target.layers)):
        raise UnsupportedModelError(
            f"{target.name} does not have the first layers of its reference: {escape(kept)}.",
            "Only a target of first layers can grow.",
        )


def _new_layers(
    plan: InheritPlan, target: ModelDirectory, reference: ModelDirectory
) -> Iterator[TargetTensor]:
    """The tensors of the layers to add, named and typed as the target's are."""
    theirs, ours = reference.container.prefix, target.container.prefix
    main, wanted = stored_dtype([t.source for t in plan.tensors]), _dtype_of(target)
    for tensor in plan.tensors:
        found = numbered(tensor.name)
        if found is None or found[0] != theirs or found[1] < target.layers:
            continue
        is_main = tensor.dtype == main and wanted is not None
        yield replace(
            tensor,
            name=ours + tensor.name.removeprefix(theirs),
            dtype=str(wanted) if is_main else tensor.dtype,
        )


def _dtype_of(model: ModelDirectory) -> str | None:
    return stored_dtype(list(model.tensors.values()))


def _record(
    target: ModelDirectory,
    reference: ModelDirectory,
    plan: InheritPlan,
    answer: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "format": 2,
        "inheritune": __version__,
        "reference": {
            "name": reference.name,
            "revision": reference.revision,
            "layers": reference.layers,
        },
        "layers": len(plan.kept),
        "layer_map": list(plan.kept),
        "grown_from": {"name": target.name, "layers": target.layers},
        "container": target.container.prefix,
        "mode": "copy",
        "dtype": None,
        "parts": "all",
        "config_edits": [],
        "check": answer["check"],
    }
