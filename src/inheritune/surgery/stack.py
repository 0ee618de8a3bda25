"""The first layers of a model twice, one stack on the other: the stacking controls."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.config import cut_config
from inheritune.model_files.copy import copy_side_files, write_file
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.write import TargetTensor, split_into_shards
from inheritune.surgery.class_check.ask_class import check_cut
from inheritune.surgery.plan import kept_tensors, renamed
from inheritune.surgery.write import to_json, write_weights
from inheritune.system.files import published

__all__ = ["check_stack", "stack"]


def stack(
    source: ModelDirectory, reference: ModelDirectory, layers: int, out: Path
) -> ModelDirectory:
    """Write a model whose lower and upper half are the same layers, bit for bit.

    Args:
        source: Its first ``layers / 2`` layers are taken twice, and what is outside of them once:
            the reference, or a model of its first layers' shape that was trained.
        reference: Its config, cut to its first ``layers``, is the new model's.
        layers: Of the new model; even, at most the reference's.
        out: Does not exist, or is empty.

    Returns:
        The new model, opened. ``start.json`` in it says where all came from.

    Raises:
        RecipeError: ``layers`` is odd, or more than the reference has.
        UnsupportedModelError: A layer would not compute the same in the upper half: it is of
            another kind there, or what it computes depends on its place.
        SourceError: A file broke while it was read.
        MachineError: The disk is full or read-only.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, baselines.
    """
    config, tensors, answer = _checked(source, reference, layers)
    config |= {key: source.config[key] for key in ("dtype", "torch_dtype") if key in source.config}
    with published(out) as staging, ThreadPoolExecutor(3) as background:
        source.download(tensor.source for tensor in tensors)
        write_weights(source, split_into_shards(tensors), staging, background)
        write_file(staging / "config.json", to_json(config))
        copy_side_files(source.path, staging)
        record = {
            "format": 1,
            "inheritune": __version__,
            "start": "stack",
            "source": {"name": source.name, "revision": source.revision, "layers": source.layers},
            "layer_map": [*range(layers // 2), *range(layers // 2)],
            "check": answer["check"],
        }
        write_file(staging / "start.json", to_json(record))
    return open_model(str(out))


def check_stack(reference: ModelDirectory, layers: int) -> None:
    """Refuse what `stack` would refuse of the reference's own layers; nothing is written.

    Raises:
        RecipeError: See `stack`.
        UnsupportedModelError: See `stack`.
    """
    _checked(reference, reference, layers)


def _checked(
    source: ModelDirectory, reference: ModelDirectory, layers: int
) -> tuple[dict[str, Any], list[TargetTensor], dict[str, Any]]:
    if layers % 2 or not 2 <= layers <= reference.layers:
        raise RecipeError(
            f"half of {layers} layers cannot be stacked twice.",
            f"Choose an even number of layers, at most {reference.layers}.",
        )
    half = layers // 2
    config, _ = cut_config(reference.config, layers)
    tensors = list(_twice(source, half))
    # The gate is asked as for layers that move: what the upper half is, and what it was below.
    prefix = source.container.prefix
    answer = check_cut(reference, [*range(half), *range(half)], config, tensors, prefix)
    if str(answer["check"]).startswith("not checked") or reference.container.parallel:
        raise UnsupportedModelError(
            f"layers of {reference.name} cannot be stacked: only its class knows whether they "
            "compute the same in another place.",
            "Leave this control out.",
        )
    return config, tensors, answer


def _twice(source: ModelDirectory, half: int) -> Iterator[TargetTensor]:
    container = source.container
    kept = kept_tensors(source, half)
    for tensor in kept:
        if container.layer_of(tensor.name) is None and tensor != source.tensors[tensor.name]:
            raise UnsupportedModelError(
                f"{source.name} has weights outside its layers with a part for each of them.",
                "Leave this control out.",
            )
        yield TargetTensor(tensor.name, tensor, tensor.dtype)
    for tensor in kept:
        if (layer := container.layer_of(tensor.name)) is not None:
            above = renamed(tensor.name, container, {layer: layer + half})
            yield TargetTensor(above, tensor, tensor.dtype)
