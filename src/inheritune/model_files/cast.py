"""Convert values from one floating dtype to another, exactly as IEEE 754 rounds them."""

from typing import TYPE_CHECKING, Any

from inheritune.errors import SourceError, escape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


FLOATING = ("F64", "F32", "F16", "BF16")
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def cast(data: bytes, source: str, target: str, name: str = "a tensor") -> bytes:
    """Round values to the nearest of another dtype, ties to even; NaN and infinity stay.

    Args:
        data: Little-endian values of dtype ``source``.
        source: One of `FLOATING`; any dtype if ``target`` is the same.
        target: One of `FLOATING`.
        name: Name of the tensor, for messages.

    Raises:
        SourceError: A finite value is too large for the target dtype.
    """
    if source == target:
        return data
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        values: Any = np.frombuffer(data, "<u2" if source == "BF16" else _NUMPY[source])
        if source == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        if target == "BF16":
            bits = _to_bf16(values)
            overflowed = ((bits & 0x7FFF) == 0x7F80) & np.isfinite(values)
            result: bytes = bits.tobytes()
        else:
            cast_values = values.astype(_NUMPY[target])
            overflowed = np.isinf(cast_values) & np.isfinite(values)
            result = cast_values.tobytes()
    if overflowed.any():
        raise SourceError(
            f"{escape(name)} holds {values[overflowed][0]:g}, too large for {target}.",
            "Choose a wider --dtype.",
        )
    return result


def _to_bf16(values: "NDArray[np.floating]") -> "NDArray[np.uint16]":
    import numpy as np

    if values.dtype == np.dtype("<f8"):
        values = _to_odd(values)
    bits = values.astype("<f4").view("<u4")
    # Round to the nearest, ties to even: add just under half a unit of the upper 16 bits, and one
    # more if they are odd.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN whose payload rounds away would become infinity: set its quiet bit instead.
    quiet = (bits >> 16) | 0x0040
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")


def _to_odd(values: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """Round fp64 to fp32 with an odd last bit where inexact, so that a second rounding is right."""
    import numpy as np

    narrow = values.astype("<f4")
    bits = narrow.view("<u4")
    inexact = np.isfinite(values) & np.isfinite(narrow) & (narrow.astype("<f8") != values)
    # Towards zero first, then odd: that is rounding to odd (Boldo and Melquiond, 2008).
    bits = np.where(inexact & (np.abs(narrow.astype("<f8")) > np.abs(values)), bits - 1, bits)
    return np.where(inexact, bits | 1, bits).astype("<u4").view("<f4")
