"""The first layers of a reference as a model directory of their own."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inheritune import __version__
from inheritune.checkpoints.config import Edit, cut_config, text_config
from inheritune.checkpoints.copy import copy_side_files, write_file
from inheritune.checkpoints.safetensors import Tensor, item_bits, write_safetensors
from inheritune.checkpoints.source import ModelDirectory, open_model
from inheritune.durable import published, refuse_used_directory
from inheritune.errors import RecipeError, SourceError, UnsupportedModelError
from inheritune.inherit.verify import check_complete

__all__ = ["inherit", "kept_tensors"]

MAX_SHARD_BYTES = 5_000_000_000

# The two known tensors outside the layers that have a part for each of them (gemma3n, gemma4):
# (V, N·d) cut by columns, (N·d, h) by rows.
_SPLIT_BY_COLUMNS = "embed_tokens_per_layer.weight"
_SPLIT_BY_ROWS = "per_layer_model_projection.weight"


def inherit(reference: ModelDirectory, layers: int, out: Path) -> ModelDirectory:
    """Write the first layers of a reference, and everything around them, as a model directory.

    Tensors are copied as ranges of bytes, so each is bit-equal to the reference's; the config is
    the reference's with a listed set of edits. The directory appears by one rename, after its
    class was asked whether every weight is there. ``inherit.json`` in it says where all came from.

    Args:
        reference: Never changed; none of its code is run.
        layers: How many to keep, counted from the embedding; 1 to all of them.
        out: Does not exist, or is empty.

    Returns:
        The target, opened.

    Raises:
        RecipeError: ``layers`` is out of range, or ``out`` is used already or in the reference.
        UnsupportedModelError: The layers would not compute what they do in the reference.
        SourceError: A file of the reference broke while it was read.
        MachineError: The disk is full or read-only.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, algorithm 1.
    """
    total = reference.layers
    if not 1 <= layers <= total:
        raise RecipeError(
            f"cannot keep {layers} layers of {reference.name}: it has {total}.",
            f"Choose layers between 1 and {total}.",
        )
    if Path(os.path.realpath(out)).is_relative_to(reference.path.resolve()):
        raise RecipeError(f"{out} lies in the reference's directory.", "Name another directory.")
    refuse_used_directory(out)
    config, edits = cut_config(reference.config, layers)
    shards = _plan_shards(kept_tensors(reference, layers))
    with published(out) as staging:
        _write_weights(reference, shards, staging)
        write_file(staging / "config.json", _json(config))
        copy_side_files(reference.path, staging)
        check = check_complete(staging, reference.container.prefix)
        parallel = reference.container.parallel
        if check.startswith("not checked") and parallel and layers < total:
            raise UnsupportedModelError(
                f"{reference.name} has lists of tensors beside its layers: {', '.join(parallel)}.",
                "Only the model's own class knows what they are, and it is not in transformers.",
            )
        record = _record(reference, layers, shards, edits, check)
        write_file(staging / "inherit.json", _json(record))
    return open_model(str(out))


def kept_tensors(reference: ModelDirectory, layers: int) -> list[Tensor]:
    """The tensors of the target, as ranges of the reference's files, in the order on disk.

    Everything outside the layers is kept: embeddings, positions, norms, heads, whatever their
    names. Multi-token-prediction layers are not: they read the last state of the full depth.
    """
    container = reference.container
    tensors = [t for t in reference.tensors.values() if container.keeps(t.name, layers)]
    if "hidden_size_per_layer_input" not in text_config(reference.config):
        return tensors
    return [_cut_split_tensor(tensor, layers, reference.layers) for tensor in tensors]


def _cut_split_tensor(tensor: Tensor, layers: int, total: int) -> Tensor:
    by_columns = tensor.name.endswith(_SPLIT_BY_COLUMNS)
    if not by_columns and not tensor.name.endswith(_SPLIT_BY_ROWS):
        return tensor
    if len(tensor.shape) != 2 or tensor.shape[int(by_columns)] % total:
        raise SourceError(
            f"{tensor.name} of shape {tensor.shape} has no part for each of {total} layers."
        )
    size = tensor.size // total * layers
    rows, columns = tensor.shape
    if not by_columns:
        return replace(tensor, shape=(rows // total * layers, columns), size=size)
    pitch = columns * item_bits(tensor.dtype) // 8 if layers < total else 0
    return replace(tensor, shape=(rows, columns // total * layers), size=size, pitch=pitch)


def _plan_shards(tensors: list[Tensor]) -> dict[str, list[Tensor]]:
    """One file for each of the reference's, in its order, so that ranges stay neighbours."""
    shards: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        size += tensor.size
        if not shards or tensor.file != shards[-1][-1].file or size > MAX_SHARD_BYTES:
            shards.append([])
            size = tensor.size
        shards[-1].append(tensor)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": s for i, s in enumerate(shards, 1)}


def _write_weights(
    reference: ModelDirectory, shards: Mapping[str, list[Tensor]], staging: Path
) -> None:
    for name, tensors in shards.items():
        # Without a format in its metadata, a file is refused by some loaders.
        metadata = {"format": "pt"} | reference.metadata.get(tensors[0].file.name, {})
        write_safetensors(staging / name, tensors, metadata)
    if len(shards) == 1:
        return
    kept = [tensor for tensors in shards.values() for tensor in tensors]
    totals = {"total_size": sum(t.size for t in kept)}
    if "total_parameters" in reference.index_metadata:
        totals["total_parameters"] = sum(t.items for t in kept)
    index = {
        "metadata": dict(reference.index_metadata) | totals,
        "weight_map": {t.name: name for name, tensors in shards.items() for t in tensors},
    }
    write_file(staging / "model.safetensors.index.json", _json(index))


def _record(
    reference: ModelDirectory,
    layers: int,
    shards: Mapping[str, list[Tensor]],
    edits: list[Edit],
    check: str,
) -> dict[str, Any]:
    container = reference.container
    kept = {tensor.name for tensors in shards.values() for tensor in tensors}
    prediction = sorted(
        name
        for name in reference.tensors
        if name not in kept and container.keeps(name, reference.layers) is False
    )
    return {
        "format": 1,
        "inheritune": __version__,
        "reference": {
            "name": reference.name,
            "revision": reference.revision,
            "digest": reference.digest,
            "layers": reference.layers,
        },
        "layers": layers,
        "layer_map": list(range(layers)),
        "container": container.prefix,
        "dropped_prediction_tensors": prediction,
        "config_edits": [asdict(edit) for edit in edits],
        "check": check,
        "tensors": {
            t.name: {"file": name, "source": _source(t)}
            for name, tensors in shards.items()
            for t in tensors
        },
    }


def _source(tensor: Tensor) -> dict[str, Any]:
    pitch = {"pitch": tensor.pitch} if tensor.pitch else {}
    return {"file": tensor.file.name, "offset": tensor.offset, "size": tensor.size} | pitch


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("ascii")
