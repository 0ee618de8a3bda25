"""Write all layers of a model at half their width, for the half-width control."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inheritune import __version__
from inheritune.errors import UnsupportedModelError, escape
from inheritune.model_files.config import Edit
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import first_int
from inheritune.model_files.layers import STRAY
from inheritune.model_files.safetensors import Tensor, item_bits
from inheritune.model_files.shapes import class_headers
from inheritune.model_files.write import TargetTensor, read_chunks
from inheritune.surgery.class_check.ask_class import check_complete
from inheritune.surgery.write import ModelPlan, Written, to_json, write_model

_HALVED = {
    "gpt2": ("n_embd", "n_head", "n_inner"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"),
        ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    ),
}
_REQUIRED = {"n_embd", "n_head", "hidden_size", "intermediate_size", "num_attention_heads"}
# Queries, keys and values side by side in one matrix: the first half of each is kept.
_FUSED = ("attn.c_attn.weight", "attn.c_attn.bias")


def half_width(reference: ModelDirectory, out: Path) -> ModelDirectory:
    """Write all layers of a reference with half the heads, MLP units and residual coordinates.

    Each layer keeps the first half of its attention heads, whose size stays, and of its MLP units;
    embeddings, positions, norms and head keep the first half of the coordinates of the residual
    stream. ``start.json`` says where the weights came from.

    Args:
        reference: A GPT-2, Llama, Mistral, Qwen2 or Qwen3.

    Raises:
        UnsupportedModelError: A width cannot be halved, or the model is of another family.
        SourceError: A file broke while it was read.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, baselines; it does not say which half.
    """
    narrow = half_width_headers(reference)
    shapes = _shapes(narrow, reference)
    whole = {name: reference.tensors[name] for name in shapes}
    tensors = [
        TargetTensor(name, _beginning(tensor, shapes[name]), tensor.dtype)
        for name, tensor in whole.items()
    ]
    prefix = reference.container.prefix
    plan = ModelPlan(
        source=reference,
        reference=reference,
        config=narrow.config,
        tensors=tensors,
        downloads=list(whole.values()),
        check=partial(check_complete, narrow.config, tensors, prefix),
        records=partial(_records, reference),
        make=partial(_rearranged, whole, shapes),
    )
    return write_model(out, plan)


def half_width_headers(reference: ModelDirectory) -> ModelDirectory:
    """Describe the half-width model of a reference by config and headers; see `half_width`."""
    config = dict(reference.config) | {e.key: e.after for e in _edits(reference.config)}
    narrow = class_headers(config, reference.name)
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
        if (value is None and key not in _REQUIRED) or (value == 1 and "key_value" in key):
            continue
        if value is None or value % 2:
            raise UnsupportedModelError(
                f"half-width needs an even {key}; the reference has {value}.",
                "Leave this control out.",
            )
        edits.append(Edit(key, value, value // 2, "half the width"))
    return edits


def _shapes(narrow: ModelDirectory, reference: ModelDirectory) -> dict[str, tuple[int, ...]]:
    """Map each tensor's name in the reference to its half-width shape, without stray buffers."""
    halved = {_bare(name): tensor.shape for name, tensor in narrow.tensors.items()}
    tied = "lm_head.weight" not in halved
    shapes = {}
    for name, tensor in reference.tensors.items():
        if name.endswith(STRAY) or (tied and name == "lm_head.weight"):
            continue
        shape = halved.pop(_bare(name), None)
        if shape is None or len(shape) != len(tensor.shape):
            raise UnsupportedModelError(
                f"{escape(name)} of {reference.name} is an unknown tensor, so it cannot be halved.",
                "Leave this control out.",
            )
        shapes[name] = shape
    if halved:
        raise UnsupportedModelError(
            f"{reference.name} has no {min(halved)}, which its config asks for.",
            "Leave this control out.",
        )
    return shapes


def _bare(name: str) -> str:
    # On the Hub, GPT-2's names stand without the name of the model inside.
    return name.removeprefix("transformer.")


def _rearranged(
    whole: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], scratch: Path
) -> dict[str, TargetTensor]:
    """Write fused tensors, of which several ranges are kept, into a file where these adjoin."""
    tensors: dict[str, TargetTensor] = {}
    scratch.mkdir()
    file, position = scratch / "columns", 0
    with file.open("xb") as out:
        for name, tensor in whole.items():
            if name.endswith(_FUSED):
                data = _halves_of_thirds(tensor, shapes[name])
                out.write(data)
                placed = Tensor(name, tensor.dtype, shapes[name], file, position, len(data))
                tensors[name] = TargetTensor(name, placed, tensor.dtype)
                position += len(data)
    return tensors


def _beginning(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cut a tensor to its first rows, and each row to the width of ``shape``."""
    item = item_bits(tensor.dtype) // 8
    size = int(np.prod(shape)) * item
    is_cut = len(shape) == 2 and shape[1] < tensor.shape[1]
    return replace(tensor, shape=shape, size=size, pitch=tensor.shape[1] * item if is_cut else 0)


def _halves_of_thirds(tensor: Tensor, shape: tuple[int, ...]) -> bytes:
    """Cut a fused query-key-value tensor (rows, 3 D) to its first rows and half of each third.

    Returns:
        The bytes of the cut tensor.
    """
    item = item_bits(tensor.dtype) // 8
    values = np.frombuffer(b"".join(read_chunks(tensor)), np.uint8).reshape(
        -1, 3, tensor.shape[-1] // 3, item
    )
    rows = shape[0] if len(shape) == 2 else 1
    return values[:rows, :, : shape[-1] // 3].tobytes()


def _records(reference: ModelDirectory, written: Written) -> Mapping[str, bytes]:
    record = {
        "format": 1,
        "inheritune": __version__,
        "start": "half-width",
        "source": {"name": reference.name, "revision": reference.revision},
        "config_edits": {edit.key: [edit.before, edit.after] for edit in _edits(reference.config)},
        "check": written.check.summary,
    }
    return {"start.json": to_json(record)}
