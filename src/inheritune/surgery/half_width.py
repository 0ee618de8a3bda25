"""All layers of a model at half their width: the half-width control."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inheritune import __version__
from inheritune.errors import UnsupportedModelError, escape
from inheritune.model_files.config import Edit
from inheritune.model_files.copy import copy_side_files, create_file, open_source, write_all
from inheritune.model_files.copy import write_file as write_bytes
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.flops import first_int
from inheritune.model_files.safetensors import Tensor, item_bits
from inheritune.model_files.shapes import synthetic_headers
from inheritune.model_files.write import TargetTensor, read_chunks, split_into_shards
from inheritune.surgery.class_check.ask_class import ask
from inheritune.surgery.parts import STRAY
from inheritune.surgery.write import to_json, write_weights
from inheritune.system.files import published

__all__ = ["half_width", "imagine_half_width"]

_HALVED = {
    "gpt2": ("n_embd", "n_head", "n_inner"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"),
        ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    ),
}
_NEEDED = {"n_embd", "n_head", "hidden_size", "intermediate_size", "num_attention_heads"}
# Queries, keys and values side by side in one matrix: the first half of each.
_FUSED = ("attn.c_attn.weight", "attn.c_attn.bias")
_SCRATCH = ".columns"


def half_width(reference: ModelDirectory, out: Path) -> ModelDirectory:
    """Write all layers of a reference with half the heads, MLP units and residual coordinates.

    Of each layer the first half of the heads, at their size, and of the MLP units; of embeddings,
    positions, norms and head the first half of the coordinates of the residual stream.

    Args:
        reference: A GPT-2, Llama, Mistral, Qwen2 or Qwen3.
        out: Does not exist, or is empty.

    Returns:
        The new model, opened. ``start.json`` in it says where all came from.

    Raises:
        UnsupportedModelError: Something cannot be halved, or the model is of another family.
        SourceError: A file broke while it was read.
        MachineError: The disk is full or read-only.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, baselines; which half is not printed.
    """
    narrow = imagine_half_width(reference)
    shapes = _shapes(narrow, reference)
    wanted = {name: reference.tensors[name] for name in shapes}
    with published(out) as staging, ThreadPoolExecutor(3) as background:
        reference.download(wanted.values())
        made = _rearranged(wanted, shapes, staging / _SCRATCH)
        tensors = [
            TargetTensor(name, _beginning(tensor, shapes[name]), tensor.dtype)
            for name, tensor in wanted.items()
        ]
        answer = ask(
            "compare_cut",
            target=narrow.config,
            tensors={t.name: [t.dtype, t.shape] for t in tensors},
            prefix=reference.container.prefix,
        )
        write_weights(reference, split_into_shards(tensors), staging, background, made=made)
        (staging / _SCRATCH).unlink(missing_ok=True)
        write_bytes(staging / "config.json", to_json(narrow.config))
        copy_side_files(reference.path, staging)
        record = {
            "format": 1,
            "inheritune": __version__,
            "start": "half-width",
            "source": {"name": reference.name, "revision": reference.revision},
            "config_edits": {
                edit.key: [edit.before, edit.after] for edit in _edits(reference.config)
            },
            "check": answer["check"],
        }
        write_bytes(staging / "start.json", to_json(record))
    return open_model(str(out))


def imagine_half_width(reference: ModelDirectory) -> ModelDirectory:
    """The half-width model of a reference as headers only; see `half_width`.

    Raises:
        UnsupportedModelError: Something cannot be halved, or the model is of another family.
    """
    config = dict(reference.config) | {e.key: e.after for e in _edits(reference.config)}
    narrow = synthetic_headers(config)
    if narrow is None:
        raise UnsupportedModelError(
            f"the config of {reference.name} leaves widths to its class, so they are not halved.",
            "Leave this control out.",
        )
    _shapes(narrow, reference)
    return narrow


def _edits(config: Mapping[str, Any]) -> list[Edit]:
    model_type = str(config.get("model_type"))
    if model_type not in _HALVED:
        raise UnsupportedModelError(
            f"half-width is defined for {', '.join(sorted(_HALVED))}, not for "
            f"{escape(model_type)}.",
            "Leave this control out.",
        )
    edits = []
    for key in _HALVED[model_type]:
        value = first_int(config, [key])
        # One key-value head serves all query heads, however many.
        if (value is None and key not in _NEEDED) or (value == 1 and "key_value" in key):
            continue
        if value is None or value % 2:
            raise UnsupportedModelError(
                f"half-width needs an even {key}; the reference has {value}.",
                "Leave this control out.",
            )
        edits.append(Edit(key, value, value // 2, "half the width"))
    return edits


def _shapes(narrow: ModelDirectory, reference: ModelDirectory) -> dict[str, tuple[int, ...]]:
    """Of each tensor of the reference, its shape at half width; without buffers of old files."""
    known = {_bare(name): tensor.shape for name, tensor in narrow.tensors.items()}
    tied = "lm_head.weight" not in known
    shapes = {}
    for name, tensor in reference.tensors.items():
        if name.endswith(STRAY) or (tied and name == "lm_head.weight"):
            continue
        shape = known.pop(_bare(name), None)
        if shape is None or len(shape) != len(tensor.shape):
            raise UnsupportedModelError(
                f"{escape(name)} of {reference.name} is not known, so it cannot be halved.",
                "Leave this control out.",
            )
        shapes[name] = shape
    if known:
        raise UnsupportedModelError(
            f"{reference.name} has no {min(known)}, which its config asks for.",
            "Leave this control out.",
        )
    return shapes


def _bare(name: str) -> str:
    # On the Hub, GPT-2's names stand without the name of the model inside.
    return name.removeprefix("transformer.")


def _rearranged(
    wanted: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], scratch: Path
) -> dict[str, TargetTensor]:
    """The tensors whose parts do not lie side by side, written where they do."""
    found: dict[str, TargetTensor] = {}
    descriptor, position = create_file(scratch), 0
    try:
        for name, tensor in wanted.items():
            if name.endswith(_FUSED):
                data = _thirds(tensor, shapes[name])
                write_all(descriptor, data)
                placed = Tensor(name, tensor.dtype, shapes[name], scratch, position, len(data))
                found[name] = TargetTensor(name, placed, tensor.dtype)
                position += len(data)
    finally:
        os.close(descriptor)
    return found


def _beginning(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first rows, and of them the first columns."""
    item = item_bits(tensor.dtype) // 8
    size = int(np.prod(shape)) * item
    cut = len(shape) == 2 and shape[1] < tensor.shape[1]
    return replace(tensor, shape=shape, size=size, pitch=tensor.shape[1] * item if cut else 0)


def _thirds(tensor: Tensor, shape: tuple[int, ...]) -> bytes:
    """The first rows, and of each third of their columns the beginning."""
    item = item_bits(tensor.dtype) // 8
    descriptor = open_source(tensor.file)
    try:
        data = b"".join(read_chunks(descriptor, tensor))
    finally:
        os.close(descriptor)
    values = np.frombuffer(data, np.uint8).reshape(-1, 3, tensor.shape[-1] // 3, item)
    rows = shape[0] if len(shape) == 2 else 1
    return values[:rows, :, : shape[-1] // 3].tobytes()
