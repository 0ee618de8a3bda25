"""Compute weights from quantised ones, by the formulas that their makers published.

Every formula gives fp32 values, a few million at a time; the writer rounds them once.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.cast import FLOATING, cast
from inheritune.model_files.config import text_config
from inheritune.model_files.safetensors import Tensor, item_bits
from inheritune.model_files.write import read_chunks
from inheritune.system.strict_json import UNTRUSTED, parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 2**21  # values computed at a time
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
# Scales of activations and caches, which say nothing of the weights.
_NOT_OF_WEIGHTS = ("input_scale", "activation_scale", "k_scale", "v_scale", "weight_format")
# Values of MXFP4's four bits: a sign, two bits of exponent, one of mantissa.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class Weight:
    """A weight that is computed from stored tensors."""

    name: str
    shape: tuple[int, ...]
    stored: Tensor  # the largest of the tensors that it is computed from
    values: Callable[[], Iterator["NDArray[np.float32]"]]  # in the order of their bytes
    used: frozenset[str]  # names of all stored tensors that it replaces


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
        elif name.endswith(".SCB"):
            weights.append(_int8(tensor, tensors))
        elif ".quant_state.bitsandbytes__" in name:
            weights.append(_four_bits(tensor, tensors))
    return weights


def left_out(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what a dequantised model has no use for, by name, with the reason."""
    return {n: "is of activations" for n in tensors if n.split(".")[-1] in _NOT_OF_WEIGHTS}


# --- fp8, or whole numbers of 8 bits: w = q s, a scale for each block, row or tensor ---


def _scaled(tensor: Tensor, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weight:
    names = (f"{tensor.name}_scale_inv", f"{tensor.name}_scale")
    scale = next((tensors[name] for name in names if name in tensors), None)
    if scale is None or len(tensor.shape) < 2:
        raise _broken(tensor, f"is of {tensor.dtype}, without {names[0]}")
    if f"{tensor.name}_zero_point" in tensors:
        raise _broken(tensor, "has zero points")
    *outer, rows, columns = tensor.shape
    grid = scale.shape[-2:] if len(scale.shape) > 1 else (*scale.shape, 1, 1)[:2]
    height, width = _block(tensor, grid, config)
    if scale.items not in (1, math.prod(outer) * math.prod(grid)):
        raise _broken(scale, f"has the shape {scale.shape}")

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        # (matrices, blocks down, blocks across); exponents may be stored as plain bytes
        exact = replace(scale, dtype="F8_E8M0") if scale.dtype == "U8" else scale
        scales = _whole(exact).reshape((-1, *grid) if scale.items > 1 else (1, 1, 1))
        scales = np.broadcast_to(scales, (math.prod(outer), *grid))
        step = height * max(_CHUNK // columns // height, 1)
        for matrix, of_matrix in enumerate(scales):
            for first in range(0, rows, step):
                count = min(step, rows - first)
                start = matrix * rows + first
                part = _rows(tensor, start, count, columns)
                blocks = of_matrix[first // height : -(-(first + count) // height)]
                spread = blocks.repeat(height, 0)[:count].repeat(width, 1)[:, :columns]
                yield part * spread

    return Weight(tensor.name, tensor.shape, tensor, values, frozenset({tensor.name, scale.name}))


def _block(tensor: Tensor, grid: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, int]:
    """Return rows and columns of a block; the last one of a matrix may be smaller."""
    rows, columns = tensor.shape[-2:]
    entries = [s.get("quantization_config") for s in (config, text_config(config))]
    stated = [e.get("weight_block_size") for e in entries if isinstance(e, Mapping)]
    known = [(block[0], block[1]) for block in stated if block and _is_block(block)]
    for height, width in (*known, (rows // grid[0], columns // grid[1]), (128, 128)):
        if height and width and (-(-rows // height), -(-columns // width)) == tuple(grid):
            return height, width
    raise _broken(tensor, f"of shape {tensor.shape} has a grid of scales of {grid}")


def _is_block(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    )


# --- MXFP4: w = v 2^(e - 127), for 32 values a byte e and half a byte each for v ---


def _mxfp4(blocks: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    name = blocks.name.removesuffix("_blocks")
    scales = _part(tensors, f"{name}_scales", blocks)
    if blocks.dtype != "U8" or scales.dtype != "U8" or len(blocks.shape) != 4:
        raise _broken(blocks, f"is of {blocks.dtype} {blocks.shape}")
    matrices, rows, groups, size = blocks.shape
    if scales.shape != (matrices, rows, groups) or size != 16:
        raise _broken(scales, f"has the shape {scales.shape}")

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        table = np.array(_FP4, "<f4")
        for matrix in range(matrices):
            packed = _rows(blocks, matrix * rows, rows, groups * size, raw=True)
            exponents = _rows(scales, matrix * rows, rows, groups, raw=True).astype(np.int32) - 127
            codes = np.stack([packed & 15, packed >> 4], -1).reshape(rows, groups, 2 * size)
            # The class multiplies from the left: each matrix is stored transposed.
            yield np.ldexp(table[codes], exponents[..., None]).reshape(rows, -1).T

    shape = (matrices, groups * 2 * size, rows)
    return Weight(name, shape, blocks, values, frozenset({blocks.name, scales.name}))


# --- bitsandbytes, 8 bits: w = q s / 127, a scale for each row ---


def _int8(scale: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    module = scale.name.removesuffix(".SCB")
    weight = _part(tensors, f"{module}.weight", scale)
    if weight.dtype != "I8" or len(weight.shape) != 2 or scale.items != weight.shape[0]:
        raise _broken(weight, f"is of {weight.dtype} {weight.shape}")
    order = tensors.get(f"{module}.weight_format")
    if order is not None and _rows(order, 0, 1, order.items, raw=True).any():
        raise _broken(order, "names an order of the bytes of old versions")

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        rows, columns = weight.shape
        scales = _whole(scale).reshape(-1, 1)
        step = max(_CHUNK // columns, 1)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            part = _rows(weight, first, count, columns)
            # The library multiplies by this, too, instead of dividing by 127.
            yield part * scales[first : first + count] * np.float32(7.874015718698502e-3)

    used = frozenset({weight.name, scale.name, *([order.name] if order else [])})
    return Weight(weight.name, weight.shape, weight, values, used)


# --- bitsandbytes, 4 bits: w = code[q] absmax, a scale for each block of the flat matrix ---


def _four_bits(state: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    name = state.name.partition(".quant_state.")[0]
    packed = _part(tensors, name, state)
    scale, code = (_part(tensors, f"{name}.{part}", state) for part in ("absmax", "quant_map"))
    facts = parse_json(b"".join(read_chunks(state)), state.name, UNTRUSTED)
    if not isinstance(facts, dict):
        raise _broken(state, "is no JSON object")
    shape, size = facts.get("shape"), facts.get("blocksize")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise _broken(state, f"gives the shape {escape(shape)}")
    items = math.prod(shape)
    if type(size) is not int or size < 2 or size % 2 or scale.items != -(-items // size):
        raise _broken(state, f"gives blocks of {escape(size)}")
    if packed.dtype != "U8" or packed.items != -(-items // 2) or code.items != 16:
        raise _broken(packed, f"is of {packed.dtype} {packed.shape}")
    used = {packed.name, scale.name, code.name, state.name}
    if scale.dtype == "U8":  # the scales are quantised as well
        used |= {f"{name}.nested_absmax", f"{name}.nested_quant_map"}
    for part in used:
        _part(tensors, part, state)

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        codes, scales = _whole(code).ravel(), _scales(name, scale, tensors, facts)
        step = size * max(_CHUNK // size, 1)
        for first in range(0, items, step):
            count = min(step, items - first)
            part = _rows(packed, first // 2, -(-count // 2), 1, raw=True).ravel()
            pairs = np.stack([part >> 4, part & 15], -1).ravel()[:count]
            of_block = scales[first // size : -(-(first + count) // size)]
            yield codes[pairs] * of_block.repeat(size)[:count]

    return Weight(name, tuple(shape), packed, values, frozenset(used))


def _scales(
    name: str, scale: Tensor, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> "NDArray[np.float32]":
    """Read the scale of each block: quantised in turn, absmax = code[a] nested + offset."""
    import numpy as np

    if scale.dtype != "U8":
        return _whole(scale).ravel()
    outer = _whole(tensors[f"{name}.nested_absmax"]).ravel()
    code = _whole(tensors[f"{name}.nested_quant_map"]).ravel()
    size, offset = facts.get("nested_blocksize"), facts.get("nested_offset")
    if type(size) is not int or size < 1 or not isinstance(offset, float | int) or len(code) != 256:
        raise _broken(scale, "is quantised, but not said how")
    if len(outer) != -(-scale.items // size):
        raise _broken(scale, f"has {len(outer)} scales for {scale.items} values")
    inner = _rows(scale, 0, scale.items, 1, raw=True).ravel()
    spread: NDArray[np.float32] = outer.repeat(size)[: scale.items]
    scales: NDArray[np.float32] = code[inner] * spread + np.float32(offset)
    return scales


# --- reading ---


def _part(tensors: Mapping[str, Tensor], name: str, of: Tensor) -> Tensor:
    if name not in tensors:
        raise _broken(of, f"is there, but not {escape(name)}")
    return tensors[name]


def _broken(tensor: Tensor, what: str) -> SourceError:
    return SourceError(
        f"{tensor.file}: {escape(tensor.name)} {what}; its weight cannot be computed.",
        "Download the model again, or use the weights it was made from.",
    )


def _whole(tensor: Tensor) -> "NDArray[np.float32]":
    values: NDArray[np.float32] = _rows(tensor, 0, 1, tensor.items).reshape(tensor.shape)
    return values


def _rows(tensor: Tensor, first: int, count: int, width: int, raw: bool = False) -> Any:
    """Read rows of a tensor as fp32 values, (count, width); ``raw``: as the bytes they are."""
    import numpy as np

    start, size = (n * width * item_bits(tensor.dtype) // 8 for n in (first, count))
    part = replace(tensor, shape=(count * width,), offset=tensor.offset + start, size=size)
    data = b"".join(read_chunks(part))
    values: Any = np.frombuffer(data, np.uint8) if raw else as_float32(data, tensor.dtype)
    return values.reshape(count, width)


def as_float32(data: bytes, dtype: str) -> "NDArray[np.float32]":
    """Decode values of any dtype that fp32 holds exactly."""
    import numpy as np

    if dtype in FLOATING:
        return np.frombuffer(cast(data, dtype, "F32"), "<f4")
    if dtype == "I8":
        return np.frombuffer(data, np.int8).astype("<f4")
    codes = np.frombuffer(data, np.uint8)
    if dtype == "F8_E5M2":  # the upper half of an fp16
        return (codes.astype("<u2") << 8).view("<f2").astype("<f4")
    if dtype == "F8_E8M0":  # a power of two
        powers = np.ldexp(np.float32(1), np.minimum(codes, 254).astype(np.int32) - 127)
        return np.where(codes == 255, np.float32(np.nan), powers)
    if dtype != "F8_E4M3":
        return codes.astype("<f4")
    # Four bits of exponent with a bias of 7, three of mantissa; all ones is NaN, none is infinite.
    every = np.arange(256)
    exponent, mantissa = every >> 3 & 15, every & 7
    size = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(mantissa, -9))
    size = np.where(every & 127 == 127, np.nan, size)
    table: NDArray[np.float32] = np.where(every < 128, size, -size).astype("<f4")
    return table[codes]
