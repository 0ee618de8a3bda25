"""Tell quantised weights from plain ones, by names and dtypes of tensors, and name the way out."""

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import UnsupportedModelError, escape
from inheritune.model_files.config import text_config
from inheritune.model_files.safetensors import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Entries of a config that say how weights are quantised."""

_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quant_state.json")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")
_FLOATS = ("F4", "F6_", "F8_")
# Methods whose class quantises its plain weights whenever it computes: a part of the model.
_ALWAYS = ("bitnet",)


@dataclass(frozen=True)
class Scheme:
    """A way to quantise weights.

    Attributes:
        signs: Endings of the tensors' names; one is enough.
        way_out: Sentence; may hold ``{here}``, the model directory.
        converts: Whether `convert` dequantises it.
    """

    name: str
    signs: tuple[str, ...]
    way_out: str = "Use the bf16, fp16 or fp32 weights it was made from."
    converts: bool = False


_LIKE_MLX = (
    "Use the weights it was made from, or `mlx_lm.convert --hf-path {here} -d --mlx-path OUT`."
)
SCHEMES = (
    Scheme("bitsandbytes 4-bit", (".bitsandbytes__nf4", ".bitsandbytes__fp4"), converts=True),
    Scheme("bitsandbytes 8-bit", (".SCB",), converts=True),
    Scheme("MXFP4", ("_blocks",), converts=True),
    Scheme("AWQ or GPTQ", (".qweight", ".qzeros", ".g_idx")),
    Scheme("HQQ", (".W_q",)),
    Scheme("packed whole numbers of compressed-tensors", (".weight_packed",), converts=True),
    Scheme("NVFP4", (".weight_scale_2",)),
    Scheme("MLX", (".biases",), _LIKE_MLX),
    Scheme("fp8", ("_scale_inv", ".weight_scale"), converts=True),
    Scheme("another way", (".absmax", ".quant_map")),
)
"""Known ways, the most specific first."""


def refuse_quantised(config: Mapping[str, Any], tensors: Collection[Tensor], path: Path) -> None:
    """Refuse quantised weights; without any tensor, what the config says of them decides."""
    if not (sign := sign_of_quantisation(config, tensors, path)):
        return
    scheme = find_scheme(tensors)
    way_out = (scheme or SCHEMES[-1]).way_out.format(here=shlex.quote(str(path)))
    if scheme is not None and scheme.converts:
        way_out = (
            f"Dequantise them: `inheritune convert {shlex.quote(str(path))} OUT`, and use OUT."
        )
    raise UnsupportedModelError(
        f"{path} is quantised ({sign}), not supported: its layers cannot be trained.", way_out
    )


def find_scheme(tensors: Collection[Tensor]) -> Scheme | None:
    """Find the way in which weights are quantised, by the names of their tensors."""
    return next((s for s in SCHEMES if any(t.name.endswith(s.signs) for t in tensors)), None)


def sign_of_quantisation(config: Mapping[str, Any], tensors: Collection[Tensor], path: Path) -> str:
    """Return what shows that weights are quantised, such as a tensor; "" if they are not."""
    return next(_signs(config, tensors, path), "")


def _signs(config: Mapping[str, Any], tensors: Collection[Tensor], path: Path) -> Iterator[str]:
    sections = (config, text_config(config))
    claims = [key for key in CONFIG_KEYS for section in sections if section.get(key)]
    if not tensors:
        stated = [str(s.get(key)) for s in sections for key in ("dtype", "torch_dtype")]
        yield from claims
        yield from (escape(dtype) for dtype in stated if dtype.startswith("float8"))
        yield from (name for name in _FILES if (path / name).exists())
        return
    scheme = find_scheme(tensors)
    if scheme is not None and scheme.name != "MLX":  # other tensors may be called biases
        yield next(escape(t.name) for t in tensors if t.name.endswith(scheme.signs))
    # A matrix of integers is no weight to train. Masks and tables of ids are called otherwise.
    for t in tensors:
        is_integer = len(t.shape) > 1 and t.dtype in _INTEGERS
        if t.dtype.startswith(_FLOATS) or (
            is_integer and (claims or t.name.endswith(("weight", "W_q")))
        ):
            yield f"{escape(t.name)} of {t.dtype}"


# --- what a config says of weights that are plain ---


def without_leftover(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Leave out what a config says of quantised weights, for a model whose weights are not.

    Merged adapters keep such entries. A class that quantises plain weights itself needs its own.

    Returns:
        A copy of the config, and the dotted names of the entries that were left out.
    """
    copy, left_out = dict(config), []
    for key in [key for key in CONFIG_KEYS if _is_leftover(copy.get(key))]:
        del copy[key]
        left_out.append(key)
    for name, section in copy.items():
        if isinstance(section, dict) and text_config(config) is section:
            inner, more = without_leftover(section)
            copy[name] = inner
            left_out += [f"{name}.{key}" for key in more]
            break
    return copy, left_out


def _is_leftover(entry: Any) -> bool:
    return isinstance(entry, dict) and bool(entry) and entry.get("quant_method") not in _ALWAYS


def forget_quantisation(config: "PreTrainedConfig") -> None:
    """Take the entries that `without_leftover` leaves out from a config that was read from disk."""
    for section in (config, config.get_text_config()):
        for key in CONFIG_KEYS:
            if _is_leftover(getattr(section, key, None)):
                delattr(section, key)
