"""Rebuild the rotary positions of a model from a GGUF file, with their scaling."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from inheritune.conversion.gguf.metadata import CONFIG_FROM, Metadata, shortest
from inheritune.errors import SourceError, escape

# llama.cpp computes with this base where a file gives none.
_BASE = 10000.0
# Low and high frequency factor and original context of every published Llama 3.1, 3.2 and 3.3. Only
# their ratios can be told from the factors: others with the same ratios are the same scaling.
_LLAMA3 = (1.0, 4.0, 8192)
_TOLERANCE = 1e-5  # relative; the factors are rounded to fp32 a few times
_YARN = {
    "yarn_ext_factor": "extrapolation_factor",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}

FactorReader = Callable[[str], list[float] | None]
"""Reads the values of a tensor outside the layers by name; None where there is none."""


def rope_parameters(
    metadata: Metadata, head_dim: int, factors: FactorReader, *, may_be_unknown: bool
) -> dict[str, Any]:
    """Return the ``rope_parameters`` of config.json.

    Args:
        head_dim: Width of a head.
        factors: Reads the tensors that hold scalings.
        may_be_unknown: Leave ``rope_type`` and the rest of the scaling out where the file does
            not tell them.

    Raises:
        SourceError: The scaling is of a kind that cannot be told from the file.
    """
    base = float(metadata.number("rope.freq_base", _BASE))
    if base <= 0:
        raise SourceError(f"rope.freq_base is {base:g}, not above 0.", CONFIG_FROM)
    parameters: dict[str, Any] = {"rope_theta": base}
    rotated = metadata.count("rope.dimension_count", head_dim)
    if rotated > head_dim:
        raise SourceError(
            f"rope.dimension_count is {rotated:,}, but a head is {head_dim:,} wide.", CONFIG_FROM
        )
    if rotated != head_dim:
        parameters["partial_rotary_factor"] = rotated / head_dim
    try:
        return parameters | _scaling(metadata, factors, base, rotated)
    except SourceError:
        if not may_be_unknown:
            raise
        return parameters


def _scaling(
    metadata: Metadata, factors: FactorReader, base: float, rotated: int
) -> dict[str, Any]:
    """Return ``rope_type`` and all that belongs to it."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    frequencies = factors("rope_freqs.weight") or []
    if any(factor != 1 for factor in frequencies):
        parameters = _llama3(frequencies, base, rotated)
    long, short = factors("rope_factors_long.weight"), factors("rope_factors_short.weight")
    if long and short:
        parameters = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
    return parameters | _scaling_of_keys(metadata, parameters["rope_type"])


def _scaling_of_keys(metadata: Metadata, rope_type: str) -> dict[str, Any]:
    """Return what the keys below ``rope.scaling`` say."""
    kind = metadata.value("rope.scaling.type", "none")
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", None))
    original = metadata.count("rope.scaling.original_context_length", None)
    metadata.value("rope.scaling.finetuned", None)  # says how the model came to be
    if rope_type == "longrope":
        attention = metadata.number("rope.scaling.attn_factor", None)
        extra = {} if attention is None else {"attention_factor": attention}
        return extra | {"original_max_position_embeddings": original}
    if (kind == "linear" and factor) or (kind == "none" and factor not in (None, 0, 1)):
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and factor and original:
        parameters = {"rope_type": "yarn", "factor": float(factor)}
        parameters["original_max_position_embeddings"] = original
        for key, name in _YARN.items():
            if (value := metadata.number(f"rope.scaling.{key}", None)) is not None:
                parameters[name] = value
        return parameters
    if kind != "none":
        raise SourceError(f"the rope scaling {escape(kind)} is not read from GGUF.", CONFIG_FROM)
    return {}


def _llama3(stored: list[float], base: float, rotated: int) -> dict[str, Any]:
    low, high, context = _LLAMA3
    parameters = {
        "rope_type": "llama3",
        "factor": shortest(max(stored)),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    if not same_factors(stored, llama3_factors(parameters, base, rotated)):
        raise SourceError(
            "rope_freqs.weight holds a scaling of rotary positions that is not that of Llama 3.1.",
            CONFIG_FROM,
        )
    return parameters


def llama3_factors(parameters: Mapping[str, Any], base: float, rotated: int) -> list[float]:
    """Return what each frequency is divided by, as Llama 3.1 scales rotary positions.

    With L the original context, l and h the low and high frequency factor, f the factor and w the
    wavelength: 1 for w < L/h, f for w > L/l, else 1 / ((1-s)/f + s), s = (L/w - l) / (h - l)
    (llama-models' `apply_scaling`).
    """
    factor, context = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    factors = []
    for dimension in range(0, rotated, 2):
        wavelength = 2 * math.pi * base ** (dimension / rotated)
        smooth = (context / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def same_factors(stored: list[float], computed: list[float]) -> bool:
    """Tell whether factors are those that were stored, but for rounding."""
    return len(stored) == len(computed) and all(
        math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(stored, computed, strict=True)
    )
