"""Build the tensor headers of a model from its config alone, as its class would write it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import UnsupportedModelError, escape, first_line
from inheritune.model_files.config import text_config
from inheritune.model_files.config_fields import COUNTS
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.model_class import named_class
from inheritune.model_files.safetensors import DTYPES, Tensor, item_bits
from inheritune.model_files.transformers_log import errors_only

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MOST_LAYERS = 10_000  # each is a module to build; no published model has a tenth of them
# Ways to compute, which change no shape, and which may need a package.
_IMPLEMENTATIONS = {"_attn_implementation", "attn_implementation", "_experts_implementation"}


def class_headers(config: Mapping[str, Any], name: str = "", dtype: str = "F32") -> ModelDirectory:
    """Describe a model that is not on this machine: its class is built, but no weight is made.

    Args:
        config: Content of a config.json.
        dtype: Dtype of its weights, as in a safetensors header.

    Returns:
        A model directory whose tensors have names and shapes, but no bytes on any disk.

    Raises:
        UnsupportedModelError: transformers cannot build a model of this config.
    """
    from transformers.core_model_loading import revert_weight_conversion

    _refuse_many_layers(config)
    typed = typed_config(config)
    model = meta_model(typed, named_class(config, type(typed)))
    # The head of a tied model is its embedding, which `save_pretrained` writes once.
    weights: dict[str, Any] = {}
    addresses: set[int] = set()
    for key, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in addresses:
            addresses.add(id(weight))
            weights[key] = weight
    # Names as on disk: some classes join what their files keep apart, such as experts.
    stored = revert_weight_conversion(model, weights)
    tensors, position = {}, 0
    for key, weight in stored.items():
        size = weight.numel() * item_bits(dtype) // 8
        shape = tuple(weight.shape)
        tensors[key] = Tensor(key, dtype, shape, Path("model.safetensors"), position, size)
        position += size
    return ModelDirectory(Path("/nonexistent"), dict(config), tensors, [], name)


def stated_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that a config.json states for its weights, as in a safetensors header."""
    sections = (config, text_config(config))
    stated = next((v for s in sections if (v := s.get("dtype") or s.get("torch_dtype"))), None)
    return DTYPES.get(str(stated), "F32")


def meta_model(config: "PreTrainedConfig", model_class: Any = None) -> "PreTrainedModel":
    """Build the class of a config without allocating its weights.

    Args:
        model_class: The class to build; None: the causal language model of the config.

    Raises:
        UnsupportedModelError: transformers cannot build a model of this config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: PreTrainedModel = (
                AutoModelForCausalLM.from_config(config, trust_remote_code=False)
                if model_class is None
                else model_class._from_config(config)
            )
        model.tie_weights()
    except Exception as error:  # classes raise any type of error
        raise _cannot_build(str(config.model_type), error) from error
    return model


def typed_config(config: Mapping[str, Any]) -> "PreTrainedConfig":
    """Make transformers' own config of the content of a config.json, with its class's defaults.

    Raises:
        UnsupportedModelError: transformers does not know the model type, or refuses a value.
    """
    from transformers import AutoConfig

    model_type = str(config.get("model_type"))
    dropped = _IMPLEMENTATIONS | {"model_type"}
    fields = {key: value for key, value in config.items() if key not in dropped}
    try:
        with errors_only():  # it warns of ids beyond a small vocabulary: its defaults, not ours
            typed: PreTrainedConfig = AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # classes raise any type of error
        raise _cannot_build(model_type, error.__cause__ or error) from error
    return typed


def _refuse_many_layers(config: Mapping[str, Any]) -> None:
    counts = [v for k, v in text_config(config).items() if k in COUNTS and type(v) is int]
    if (layers := max(counts, default=0)) > _MOST_LAYERS:
        raise UnsupportedModelError(
            f"config.json gives {layers:,} layers; a model of more than {_MOST_LAYERS:,} is not "
            "built.",
            "Check its config.json.",
        )


def _cannot_build(model_type: str, error: BaseException) -> UnsupportedModelError:
    # Of an unknown type transformers lists all that it knows; the text of a KeyError is the key.
    reason = first_line(error).partition(". Should contain one of")[0]
    if isinstance(error, KeyError):
        reason = f"{escape(error)} is not known"
    return UnsupportedModelError(
        f"transformers cannot build a {escape(model_type)} of this config: {reason}.",
        "Choose a decoder-only model that transformers knows, and check its config.json.",
    )
