"""Model directories as live fp32 models to train, and back."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inheritune.durable import published, sync_file, write_json
from inheritune.errors import SourceError
from inheritune.train.throughput import count_params, flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Shape", "describe", "fresh_model", "load_model", "save_model"]


@dataclass(frozen=True)
class Shape:
    """Size and cost of a model.

    Attributes:
        params: Weights, tied ones once.
        flops_per_token: Forward and backward, see `throughput.flops_per_token`.
    """

    params: int
    flops_per_token: float


def describe(directory: Path, seq_len: int) -> Shape:
    """Size and cost of a model directory, from its config.json alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(directory, dropout=0.0))
    model.tie_weights()
    return Shape(count_params(model), flops_per_token(model, seq_len))


def load_model(directory: Path, dropout: float = 0.0) -> "PreTrainedModel":
    """A model with the weights of a directory, in fp32.

    fp32 is asked for when loading: casting afterwards would leave a bf16 checkpoint's rotary
    tables rounded, and training in pure bf16 is worse.

    Raises:
        SourceError: The directory does not hold every weight.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        config=_config(directory, dropout),
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, info = loaded
    if info["missing_keys"]:
        raise SourceError(
            f"{directory} lacks the weights {sorted(info['missing_keys'])[0]}.",
            "They would be random; write the directory again.",
        )
    return model  # type: ignore[no-any-return]


def fresh_model(directory: Path, seed: int, dropout: float = 0.0) -> "PreTrainedModel":
    """A model of a directory's config with fresh weights, as its own class initialises them.

    Args:
        directory: Holds config.json; the depth in it sets the initial scale where a class has one.
        seed: The same seed gives the same weights.
        dropout: See `load_model`.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        _config(directory, dropout), dtype=torch.float32
    )
    return model


def save_model(model: "PreTrainedModel", out: Path, start: Path) -> None:
    """Publish a trained model as a Hugging Face directory, by one rename.

    Weights are written in fp32, as trained. Everything else comes from the directory that the
    training started from, byte for byte, except for the dtype that config.json states.

    Args:
        model: fp32 weights.
        out: Must not exist.
        start: Its config.json, tokenizer and other side files are taken over.
    """
    with published(out) as staging:
        model.save_pretrained(staging)
        for path in start.iterdir():
            if path.is_file() and not path.name.startswith(("model", "inherit.json")):
                shutil.copyfile(path, staging / path.name)
        config = json.loads((start / "config.json").read_text(encoding="utf-8"))
        write_json(staging / "config.json", _with_dtype(config, "float32"))
        umask = os.umask(0)
        os.umask(umask)
        for path in staging.iterdir():
            path.chmod(0o666 & ~umask)  # safetensors leaves 0600
            sync_file(path)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return config | {key: dtype}


def _config(directory: Path, dropout: float) -> "PreTrainedConfig":
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True)
    for section in {id(c): c for c in (config, config.get_text_config())}.values():
        for key, value in vars(section).items():
            if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float | int):
                setattr(section, key, dropout)
    return config
