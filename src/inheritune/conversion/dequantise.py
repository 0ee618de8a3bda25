"""Compute weights from quantised ones, by the formulas that their makers published.

Every formula gives fp32 values, a few million at a time (of MXFP4, a matrix of one expert); the
writer rounds them once.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inheritune.conversion.bitsandbytes import eight_bits, four_bits
from inheritune.conversion.stored_values import CHUNK, Weight, broken, part_of, rows_of, whole
from inheritune.errors import SourceError, escape
from inheritune.model_files.config import text_config
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import read_chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STATE_BLOCKS = (
    "If you know the size of its blocks, write it into config.json, such as "
    '"quantization_config": {"weight_block_size": [128, 128]}.'
)
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
# Scales of activations and caches, which say nothing of the weights.
_NOT_OF_WEIGHTS = ("input_scale", "activation_scale", "k_scale", "v_scale", "weight_format")
# Values of MXFP4's four bits: a sign, two bits of exponent, one of mantissa.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def dequantised(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Weight]:
    """List the weights that quantised tensors stand for, with the formula of each.

    Raises:
        SourceError: A tensor that belongs to one of them is missing, or has another shape.
    """
    weights = []
    for name, tensor in tensors.items():
        if tensor.dtype in _FLOAT8 or (tensor.dtype == "I8" and f"{name}_scale" in tensors):
            weights.append(_scaled(tensor, tensors, config))
        elif name.endswith("_blocks"):
            weights.append(_mxfp4(tensor, tensors))
        elif name.endswith(".weight_packed"):
            weights.append(_packed(tensor, tensors))
        elif name.endswith(".SCB"):
            weights.append(eight_bits(tensor, tensors))
        elif ".quant_state.bitsandbytes__" in name:
            weights.append(four_bits(tensor, tensors))
    return weights


def left_out(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what a dequantised model has no use for, by name, with the reason."""
    return {n: "is of activations" for n in tensors if n.split(".")[-1] in _NOT_OF_WEIGHTS}


# --- fp8, or whole numbers of 8 bits: w = q s, a scale for each block, row or tensor ---


def _scaled(tensor: Tensor, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weight:
    names = (f"{tensor.name}_scale_inv", f"{tensor.name}_scale")
    scale = next((tensors[name] for name in names if name in tensors), None)
    if scale is None or len(tensor.shape) < 2:
        raise broken(tensor, f"is of {tensor.dtype}, without {names[0]}")
    if f"{tensor.name}_zero_point" in tensors:
        raise broken(tensor, "has zero points")
    if not tensor.items or not scale.items:
        raise broken(tensor, f"of shape {tensor.shape} has scales of {scale.shape}")
    *outer, rows, columns = tensor.shape
    grid = _grid(scale, tuple(outer))
    height, width = _block(tensor, scale, grid, config)

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        # (matrices, blocks down, blocks across); exponents may be stored as plain bytes
        exact = replace(scale, dtype="F8_E8M0") if scale.dtype == "U8" else scale
        scales = whole(exact).reshape((-1, *grid) if scale.items > 1 else (1, 1, 1))
        scales = np.broadcast_to(scales, (math.prod(outer), *grid))
        step = max(CHUNK // columns, 1)
        for matrix, of_matrix in enumerate(scales):
            for first in range(0, rows, step):
                count = min(step, rows - first)
                start = matrix * rows + first
                part = rows_of(tensor, start, count, columns)
                blocks = of_matrix[np.arange(first, first + count) // height]
                spread = blocks.repeat(width, 1)[:, :columns]
                yield part * spread

    return Weight(tensor.name, tensor.shape, tensor, values, frozenset({tensor.name, scale.name}))


def _grid(scale: Tensor, outer: tuple[int, ...]) -> tuple[int, int]:
    """Return the numbers of scales down and across a matrix, one of ``outer``."""
    if scale.items == 1:
        return 1, 1
    shape = scale.shape if len(scale.shape) > 1 else (*scale.shape, 1)
    if shape[:-2] != outer:
        raise broken(scale, f"has the shape {scale.shape}")
    return shape[-2], shape[-1]


def _block(
    tensor: Tensor, scale: Tensor, grid: tuple[int, int], config: Mapping[str, Any]
) -> tuple[int, int]:
    """Return rows and columns of a block; the last one of a matrix may be smaller.

    Several sizes may give the same number of blocks, 960 = 8 x 120 = 7 x 128 + 64: the config's
    word counts, and where it says nothing, a size that no other one stands beside.
    """
    rows, columns = tensor.shape[-2:]
    if grid in ((1, 1), (rows, 1)):  # one scale, or one for each row
        return rows // grid[0], columns
    stated = _stated_blocks(config)
    # DeepSeek's name stands for blocks alone; another may have a scale for each fused matrix.
    is_of_blocks = scale.name.endswith("_scale_inv") and len(scale.shape) > 1
    if not stated and grid[1] == 1 and not is_of_blocks:
        _refuse_unequal_parts(tensor, grid[0], config)
    heights, widths = (_sizes(*pair) for pair in zip((rows, columns), grid, strict=True))
    guesses = [(height, width) for height in heights for width in widths]
    fitting = sorted(
        (height, width)
        for height, width in set(stated or guesses)
        if (-(-rows // height), -(-columns // width)) == grid
    )
    if not fitting:
        raise broken(tensor, f"of shape {tensor.shape} has a grid of scales of {grid}")
    if len(fitting) > 1:
        shown = " or ".join(f"{height} x {width}" for height, width in fitting)
        raise SourceError(
            f"{tensor.file}: {escape(tensor.name)} of shape {tensor.shape} with scales of "
            f"{grid} has blocks of {shown}, and the config does not say which.",
            _STATE_BLOCKS,
        )
    return fitting[0]


def _sizes(size: int, count: int) -> set[int]:
    """Guess how many values a block has along an axis of so many blocks."""
    if count in (1, size):
        return {size // count}
    return {128} | ({size // count} if size % count == 0 else set())


def _stated_blocks(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """List the sizes of blocks that a config names, as transformers or compressed-tensors does."""
    sections = (config, text_config(config))
    entries = [s.get(k) for s in sections for k in ("quantization_config", "compression_config")]
    stated = []
    for entry in (entry for entry in entries if isinstance(entry, Mapping)):
        groups = entry.get("config_groups")
        weights = [
            group.get("weights")
            for group in (groups.values() if isinstance(groups, Mapping) else ())
            if isinstance(group, Mapping)
        ]
        of_groups = [w.get("block_structure") for w in weights if isinstance(w, Mapping)]
        for value in (entry.get("weight_block_size"), *of_groups):
            if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}x[0-9]{1,9}", value):
                value = [int(n) for n in value.split("x")]
            if isinstance(value, list) and _is_block(value):
                stated.append((value[0], value[1]))
    return stated


def _is_block(value: list[Any]) -> bool:
    return len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def _refuse_unequal_parts(tensor: Tensor, parts: int, config: Mapping[str, Any]) -> None:
    """Refuse a scale for each of some fused matrices, unless all have the same number of rows."""
    section = text_config(config)
    heads, groups = section.get("num_attention_heads"), section.get("num_key_value_heads")
    is_equal = (parts == 2 and "gate_up" in tensor.name) or (parts == 3 and heads == groups)
    if not is_equal or heads is None:
        raise SourceError(
            f"{tensor.file}: {escape(tensor.name)} of shape {tensor.shape} has {parts} scales, one "
            f"below the other: it may be {parts} matrices in one, or blocks of a size that the "
            "config does not say, so its weight cannot be computed.",
            _STATE_BLOCKS,
        )


# --- MXFP4: w = v 2^(e - 127), for 32 values a byte e and half a byte each for v ---


def _mxfp4(blocks: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    name = blocks.name.removesuffix("_blocks")
    scales = part_of(tensors, f"{name}_scales", blocks)
    if blocks.dtype != "U8" or scales.dtype != "U8" or len(blocks.shape) != 4:
        raise broken(blocks, f"is of {blocks.dtype} {blocks.shape}")
    matrices, rows, groups, size = blocks.shape
    if scales.shape != (matrices, rows, groups) or size != 16 or not blocks.items:
        raise broken(scales, f"has the shape {scales.shape}")

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        table = np.array(_FP4, "<f4")
        for matrix in range(matrices):
            packed = rows_of(blocks, matrix * rows, rows, groups * size, raw=True)
            exponents = (
                rows_of(scales, matrix * rows, rows, groups, raw=True).astype(np.int32) - 127
            )
            codes = np.stack([packed & 15, packed >> 4], -1).reshape(rows, groups, 2 * size)
            # The class multiplies from the left: each matrix is stored transposed.
            yield np.ldexp(table[codes], exponents[..., None]).reshape(rows, -1).T

    shape = (matrices, groups * 2 * size, rows)
    return Weight(name, shape, blocks, values, frozenset({blocks.name, scales.name}))


# --- packed numbers of compressed-tensors: w = (q - 8) s, 4 bits, a scale for some columns ---


def _packed(packed: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    import numpy as np

    name = packed.name.removesuffix("_packed")
    scale, shape_of = (part_of(tensors, f"{name}_{part}", packed) for part in ("scale", "shape"))
    if (kind := {"I32": "<i4", "I64": "<i8"}.get(shape_of.dtype)) is None or shape_of.items != 2:
        raise broken(shape_of, f"is of {shape_of.dtype} {shape_of.shape}")
    shape = [int(n) for n in np.frombuffer(b"".join(read_chunks(shape_of)), kind)]
    others = [f"{name}_{part}" for part in ("zero_point", "g_idx", "global_scale")]
    if any(other in tensors for other in others) or packed.dtype != "I32":
        raise broken(packed, "is packed in another way than 4 bits around zero")
    rows, columns = shape
    words = -(-columns // 8)
    groups = scale.items // rows if rows > 0 and columns > 0 else 0
    is_whole = groups > 0 and columns % groups == 0 and scale.shape == (rows, groups)
    if packed.shape != (rows, words) or not is_whole:
        raise broken(packed, f"of shape {packed.shape} stands for {tuple(shape)}")

    def values() -> Iterator["NDArray[np.float32]"]:
        scales = whole(scale).reshape(rows, groups)
        step = max(CHUNK // columns, 1)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            # The lowest bits of a word are the first value.
            part = rows_of(packed, first, count, words, raw=True)
            codes = np.stack([part & 15, part >> 4], -1).reshape(count, -1)[:, :columns]
            spread = scales[first : first + count].repeat(columns // groups, 1)
            yield (codes.astype("<f4") - 8) * spread

    used = frozenset({packed.name, scale.name, shape_of.name})
    return Weight(name, (rows, columns), packed, values, used)
