"""Compute weights that bitsandbytes quantised to 8 or 4 bits."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from inheritune.conversion.stored_values import CHUNK, Weight, broken, part_of, rows_of, whole
from inheritune.errors import escape
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import read_chunks
from inheritune.system.strict_json import UNTRUSTED, parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# --- bitsandbytes, 8 bits: w = q s / 127, a scale for each row ---


def eight_bits(scale: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    """Describe the weight that a tensor of scales, ``.SCB``, belongs to."""
    module = scale.name.removesuffix(".SCB")
    weight = part_of(tensors, f"{module}.weight", scale)
    is_matrix = len(weight.shape) == 2 and weight.items > 0
    if weight.dtype != "I8" or not is_matrix or scale.items != weight.shape[0]:
        raise broken(weight, f"is of {weight.dtype} {weight.shape}")
    order = tensors.get(f"{module}.weight_format")
    if order is not None and rows_of(order, 0, 1, order.items, raw=True).any():
        raise broken(order, "names an order of the bytes of old versions")

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        rows, columns = weight.shape
        scales = whole(scale).reshape(-1, 1)
        step = max(CHUNK // columns, 1)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            part = rows_of(weight, first, count, columns)
            # The library multiplies by this, too, instead of dividing by 127.
            yield part * scales[first : first + count] * np.float32(7.874015718698502e-3)

    used = frozenset({weight.name, scale.name, *([order.name] if order else [])})
    return Weight(weight.name, weight.shape, weight, values, used)


# --- bitsandbytes, 4 bits: w = code[q] absmax, a scale for each block of the flat matrix ---


def four_bits(state: Tensor, tensors: Mapping[str, Tensor]) -> Weight:
    """Describe the weight that a tensor of JSON, ``.quant_state``, belongs to."""
    name = state.name.partition(".quant_state.")[0]
    packed = part_of(tensors, name, state)
    scale, code = (part_of(tensors, f"{name}.{part}", state) for part in ("absmax", "quant_map"))
    facts = parse_json(b"".join(read_chunks(state)), state.name, UNTRUSTED)
    if not isinstance(facts, dict):
        raise broken(state, "is no JSON object")
    shape, size = facts.get("shape"), facts.get("blocksize")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise broken(state, f"gives the shape {escape(shape)}")
    items = math.prod(shape)
    if type(size) is not int or size < 2 or size % 2 or scale.items != -(-items // size):
        raise broken(state, f"gives blocks of {escape(size)}")
    if packed.dtype != "U8" or packed.items != -(-items // 2) or code.items != 16:
        raise broken(packed, f"is of {packed.dtype} {packed.shape}")
    used = {packed.name, scale.name, code.name, state.name}
    if scale.dtype == "U8":  # the scales are quantised as well
        used |= {f"{name}.nested_absmax", f"{name}.nested_quant_map"}
    for part in used:
        part_of(tensors, part, state)

    def values() -> Iterator["NDArray[np.float32]"]:
        import numpy as np

        codes, scales = whole(code).ravel(), _scales(name, scale, tensors, facts)
        step = size * max(CHUNK // size, 1)
        for first in range(0, items, step):
            count = min(step, items - first)
            part = rows_of(packed, first // 2, -(-count // 2), 1, raw=True).ravel()
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
        return whole(scale).ravel()
    outer = whole(tensors[f"{name}.nested_absmax"]).ravel()
    code = whole(tensors[f"{name}.nested_quant_map"]).ravel()
    size, offset = facts.get("nested_blocksize"), facts.get("nested_offset")
    if type(size) is not int or size < 1 or not isinstance(offset, float | int) or len(code) != 256:
        raise broken(scale, "is quantised, but not said how")
    if len(outer) != -(-scale.items // size):
        raise broken(scale, f"has {len(outer)} scales for {scale.items} values")
    inner = rows_of(scale, 0, scale.items, 1, raw=True).ravel()
    spread: NDArray[np.float32] = outer.repeat(size)[: scale.items]
    scales: NDArray[np.float32] = code[inner] * spread + np.float32(offset)
    return scales
