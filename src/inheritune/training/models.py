"""Load model directories as live fp32 models, and save trained ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inheritune.errors import (
    DivergedError,
    RecipeError,
    SourceError,
    UnsupportedModelError,
    escape,
    first_line,
    sentence,
)
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import open_model
from inheritune.model_files.quantisation import forget_quantisation
from inheritune.model_files.refusals import refuse_attached_adapter
from inheritune.model_files.safetensors import torch_name
from inheritune.model_files.shapes import meta_model, typed_config
from inheritune.model_files.transformers_log import errors_only
from inheritune.surgery.class_check.language_model import refuse_no_language_model
from inheritune.surgery.plan import NEVER_NARROWED, stored_dtype
from inheritune.system.files import new_directory, sync_file, write_json
from inheritune.system.strict_json import MODEL_FILE, read_json_object
from inheritune.training.throughput import count_params, flops_per_token
from inheritune.training.trained_weights import freeze_all_but, lowest_trained_layer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


_NO_CODE = "Training runs no code of a model directory; choose a model that transformers knows."


@dataclass(frozen=True)
class Shape:
    """Size and cost of a model."""

    params: int  # number of weights, tied ones once
    flops_per_token: float  # FLOPs of one training token, forward and backward
    trained: int  # number of weights that are trained
    lowest_trained_layer: int  # first layer that gradients pass through
    layers: int
    in_layers: int  # number of weights in layers and their last norm
    ties_head: bool  # whether the head is the embedding


def describe(directory: Path, seq_len: int, only: Sequence[str] | None = None) -> Shape:
    """Compute size and cost of a model directory, from its config.json alone.

    Args:
        only: The weights that are trained, see `trained_weights`; None: all.

    Raises:
        RecipeError: ``only`` names something that the model does not have.
        UnsupportedModelError: transformers has no causal language model of this config.
    """
    config_json = (directory / "config.json").read_bytes()
    return _described(directory, config_json, seq_len, None if only is None else tuple(only))


@lru_cache(maxsize=32)  # every training needs it three times, and building a model takes a while
def _described(
    directory: Path, config_json: bytes, seq_len: int, only: Sequence[str] | None
) -> Shape:
    return _shape(_config(directory, dropout=0.0), seq_len, only)


def vocab_size(directory: Path) -> int:
    """Return the number of ids that a model predicts, as its class understands its config.json."""
    return int(_config(directory, dropout=0.0).get_text_config(decoder=True).vocab_size)


def describe_config(
    config: Mapping[str, Any], seq_len: int, only: Sequence[str] | None = None
) -> Shape:
    """Compute size and cost from a config that is not on disk; see `describe`."""
    return _shape(typed_config(config), seq_len, only)


def _shape(config: "PreTrainedConfig", seq_len: int, only: Sequence[str] | None) -> Shape:
    model = meta_model(config)
    freeze_all_but(model, only)
    section = config.get_text_config(decoder=True)
    return Shape(
        params=count_params(model),
        flops_per_token=flops_per_token(model, seq_len),
        trained=count_params(model, trained=True),
        lowest_trained_layer=0 if only is None else lowest_trained_layer(model),
        layers=section.num_hidden_layers,
        in_layers=count_params(model) - _outside_layers(model),
        ties_head=bool(getattr(section, "tie_word_embeddings", False)),
    )


def _outside_layers(model: "PreTrainedModel") -> int:
    """Count the weights of embedding and head, those of a tied one once."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {weight for end in ends if end is not None for weight in end.parameters()}
    return sum(weight.numel() for weight in weights)


def load_model(
    directory: Path, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> "PreTrainedModel":
    """Load a complete model directory; nothing is downloaded, none of its code is run.

    Casting after loading would leave the rotary tables of a bf16 model rounded, and training in
    pure bf16 is worse.

    Raises:
        SourceError: The directory does not hold every weight.
        UnsupportedModelError: transformers does not take the config.
    """
    from transformers import AutoModelForCausalLM

    config = _config(directory, dropout)
    refuse_attached_adapter(directory)
    try:
        with errors_only():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # classes raise any type of error
        if "can't allocate memory" in str(error):
            raise
        raise _not_loaded(directory, sentence(first_line(error))) from error
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise _not_loaded(directory, "config.json and weights do not belong together.")
    return model  # type: ignore[no-any-return]


def _not_loaded(directory: Path, reason: str) -> SourceError:
    """Say what a model directory lacks for a language model; else ``reason``."""
    try:
        refuse_no_language_model(open_model(str(directory)))
    except SourceError as error:
        return error
    return SourceError(
        f"transformers does not load {directory}: {reason}", "Download or write the model again."
    )


def fresh_model(directory: Path, seed: int, dropout: float = 0.0) -> "PreTrainedModel":
    """Make a model of a directory's config with fresh weights, as its own class initialises them.

    Some classes scale them by the number of layers.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        _config(directory, dropout), dtype=torch.float32, trust_remote_code=False
    )
    return model


def save_model(model: "PreTrainedModel", out: Path, start: Path, dtype: str = "F32") -> None:
    """Publish a trained model as a Hugging Face directory, by one rename.

    Args:
        model: Its weights are rounded in place unless ``dtype`` is ``"F32"``.
        out: Must not exist.
        start: The directory that the training started from. config.json, tokenizer and other side
            files are taken over byte for byte, except for the dtype that config.json states.
        dtype: Dtype of the written weights, as in a safetensors header.

    Raises:
        DivergedError: A weight is NaN or infinite; nothing is written.
        RecipeError: A weight is beyond the range of the dtype; nothing is written.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    _round_weights(model, out, start, dtype)
    with new_directory(out) as staging:
        model.save_pretrained(staging)
        copy_side_files(start, staging)
        config = read_json_object(start / "config.json", MODEL_FILE)
        stated = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[stated] = torch_name(dtype)
        write_json(staging / "config.json", config, infinity=True)
        for path in staging.glob("*.safetensors*"):
            sync_file(path)


def _round_weights(model: "PreTrainedModel", out: Path, start: Path, dtype: str) -> None:
    """Round the weights in place, but for those that the start or their class keeps wider."""
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise DivergedError(
            f"a weight of {out} is NaN or infinite.",
            "Lower train.learning_rate in a run of another name.",
        )
    stored = {} if _is_fresh(start) else open_model(str(start)).tensors
    main = stored_dtype([*stored.values()])
    for name, weight in model.named_parameters():
        own = stored[name].dtype if name in stored else main
        if name.endswith(NEVER_NARROWED) or own != main:
            continue
        weight.data = weight.data.to(getattr(torch, torch_name(dtype)))
        if not weight.isfinite().all():
            raise RecipeError(
                f"{name} of {out} is beyond the range of {dtype}.",
                "Set target.dtype to bf16 or fp32, in a run of another name.",
            )


def _is_fresh(start: Path) -> bool:
    return not any(start.glob("*.safetensors"))


def _config(directory: Path, dropout: float) -> "PreTrainedConfig":
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UnsupportedModelError(
            f"transformers does not take {directory / 'config.json'}: "
            f"{first_line(error.__cause__ or error)}.",
            _NO_CODE,
        ) from error
    forget_quantisation(config)
    _refuse_own_class(config, directory)
    for section in {id(c): c for c in (config, config.get_text_config())}.values():
        for key, value in vars(section).items():
            if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float | int):
                setattr(section, key, dropout)
    return config


def _refuse_own_class(config: "PreTrainedConfig", directory: Path) -> None:
    """Refuse a model of a known type that brings its own class, which may compute otherwise."""
    import transformers

    names = getattr(config, "architectures", None)
    names = names if isinstance(names, list) else []
    unknown = [name for name in names if not hasattr(transformers, str(name))]
    if unknown and getattr(config, "auto_map", None):
        raise UnsupportedModelError(
            f"the class {escape(unknown[0])} comes with {directory}, and its code is not run.",
            _NO_CODE,
        )
