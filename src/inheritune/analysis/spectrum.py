"""Compute singular values of every layer's weights from the files, one matrix at a time."""

from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from inheritune.errors import UnsupportedModelError
from inheritune.model_files.safetensors import Tensor as StoredTensor

if TYPE_CHECKING:
    from inheritune.model_files.directory import ModelDirectory


_READABLE = ("F64", "F32", "F16", "BF16")
_SHOWN = 16  # largest singular values kept of each matrix


def weight_spectrum(model: "ModelDirectory") -> list[dict[str, Any]]:
    """Compute stable and effective rank of every matrix of every layer.

    Returns:
        For each: ``layer``, ``name`` within the layer, ``shape``, ``largest`` singular values,
        ``stable_rank`` (squared norm by squared largest), ``effective_rank`` (exponential of the
        entropy of the singular values' shares); ranks from 1 to the shorter side, None for a
        matrix of zeros.

    Raises:
        UnsupportedModelError: The weights have a dtype that torch cannot read, such as packed FP8.

    Source of the effective rank: Roy and Vetterli, The effective rank, 2007.
    """
    container, rows = model.container, []
    for name, tensor in model.tensors.items():
        layer = container.layer_of(name)
        if layer is None or layer >= container.layers or len(tensor.shape) != 2:
            continue
        inside = name.removeprefix(f"{container.prefix}{layer}.")
        values = _singular_values(_read(tensor))
        rows.append(
            {"layer": layer, "name": inside, "shape": list(tensor.shape)} | _summary(values)
        )
    return sorted(rows, key=lambda row: (row["layer"], row["name"]))


def _read(tensor: StoredTensor) -> torch.Tensor:
    if tensor.dtype not in _READABLE:
        raise UnsupportedModelError(
            f"{tensor.name} is stored as {tensor.dtype}, whose singular values are not computed.",
            "Leave the spectrum out.",
        )
    with safe_open(tensor.file, "pt") as file:
        return file.get_tensor(tensor.name).to(torch.float64)  # type: ignore[no-any-return]


def _singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Compute singular values, largest first: roots of the eigenvalues of A A^T, in fp64."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values: torch.Tensor = torch.linalg.eigvalsh(short @ short.T)
    return values.clamp_min(0).sqrt().flip(0)


def _summary(values: torch.Tensor) -> dict[str, Any]:
    largest = [round(float(value), 6) for value in values[:_SHOWN]]
    if not float(values[0]):
        return {"largest": largest, "stable_rank": None, "effective_rank": None}
    shares = values / values.sum()
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return {
        "largest": largest,
        "stable_rank": float(values.square().sum() / values[0].square()),
        "effective_rank": float(entropy.exp()),
    }
