"""Stack the first layers of a model twice, for the stacking controls."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.config import cut_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import ClassCheck, check_cut
from inheritune.surgery.plan import kept_tensors, renamed
from inheritune.surgery.write import ModelPlan, Written, to_json, write_model


def stack(
    source: ModelDirectory, reference: ModelDirectory, layers: int, out: Path
) -> ModelDirectory:
    """Write a model whose lower and upper half are the same layers, bit for bit.

    ``start.json`` says where its layers came from.

    Args:
        source: The model whose first ``layers / 2`` layers are taken twice, and everything outside
            its layers once: the reference, or a trained model with layers of the same shapes.
        reference: Its config, cut to ``layers`` layers, becomes the new model's.
        layers: Number of layers of the new model; even, at most the reference's.

    Raises:
        RecipeError: ``layers`` is odd, or more than the reference has.
        UnsupportedModelError: A layer would compute something else in the upper half, since layers
            there are of another kind, or its computation depends on its index.
        SourceError: A file broke while it was read.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, baselines.
    """
    return write_model(out, _plan(source, reference, layers))


def check_stack(reference: ModelDirectory, layers: int) -> None:
    """Raise what `stack` would raise for the reference's own layers; nothing is written."""
    _plan(reference, reference, layers).check()


def _plan(source: ModelDirectory, reference: ModelDirectory, layers: int) -> ModelPlan:
    if layers % 2 or not 2 <= layers <= reference.layers:
        raise RecipeError(
            f"half of {layers} layers cannot be stacked twice.",
            f"Choose an even number of layers, at most {reference.layers}.",
        )
    half = layers // 2
    layer_map = [*range(half), *range(half)]
    config, _ = cut_config(reference.config, layers)
    tensors = list(_twice(source, half))
    dtypes = {key: source.config[key] for key in ("dtype", "torch_dtype") if key in source.config}
    return ModelPlan(
        source=source,
        reference=source,
        config=config | dtypes,
        tensors=tensors,
        downloads=[tensor.source for tensor in tensors],
        check=partial(_check, source, reference, layer_map, config, tensors),
        records=partial(_records, source, layer_map),
    )


def _twice(source: ModelDirectory, half: int) -> Iterator[TargetTensor]:
    container = source.container
    tensors = kept_tensors(source, half)
    for tensor in tensors:
        if container.layer_of(tensor.name) is None and tensor != source.tensors[tensor.name]:
            raise UnsupportedModelError(
                f"{source.name} has weights outside its layers with a part for each of them.",
                "Leave this control out.",
            )
        yield TargetTensor(tensor.name, tensor, tensor.dtype)
    for tensor in tensors:
        if (layer := container.layer_of(tensor.name)) is not None:
            name = renamed(tensor.name, container, {layer: layer + half})
            yield TargetTensor(name, tensor, tensor.dtype)


def _check(
    source: ModelDirectory,
    reference: ModelDirectory,
    layer_map: list[int],
    config: Mapping[str, object],
    tensors: list[TargetTensor],
) -> ClassCheck:
    # Each layer of the upper half is compared with the layer of the lower half that it copies.
    check = check_cut(reference, layer_map, config, tensors, source.container.prefix)
    if check.skipped or reference.container.parallel:
        raise UnsupportedModelError(
            f"layers of {reference.name} cannot be stacked: only its class knows whether they "
            "compute the same in another place.",
            "Leave this control out.",
        )
    return check


def _records(source: ModelDirectory, layer_map: list[int], written: Written) -> Mapping[str, bytes]:
    record = {
        "format": 1,
        "inheritune": __version__,
        "start": "stack",
        "source": {"name": source.name, "revision": source.revision, "layers": source.layers},
        "layer_map": layer_map,
        "check": written.check.summary,
    }
    return {"start.json": to_json(record)}
