"""Build the tensor headers of a model from its config alone, as its class would write it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import UnsupportedModelError, escape, first_line
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import Tensor, item_bits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_WORDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def class_headers(config: Mapping[str, Any], name: str = "", dtype: str = "F32") -> ModelDirectory:
    """Describe a model that is not on this machine: its class is built, but no weight is made.

    Args:
        config: Content of a config.json.
        dtype: Dtype of its weights, as in a safetensors header.

    Returns:
        A model directory whose tensors have names and shapes, but no bytes on any disk.

    Raises:
        UnsupportedModelError: transformers has no causal language model of this config.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = meta_model(typed_config(config))
    # The head of a tied model is its embedding, which `save_pretrained` writes once.
    weights: dict[str, Any] = {}
    for key, weight in model.state_dict(keep_vars=True).items():
        if not any(weight is other for other in weights.values()):
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
    stated = config.get("dtype", config.get("torch_dtype"))
    return _WORDS.get(str(stated), "F32")


def meta_model(config: "PreTrainedConfig") -> "PreTrainedModel":
    """Build the class of a config without allocating its weights.

    Raises:
        UnsupportedModelError: transformers has no causal language model of this config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _cannot_build(str(config.model_type), error) from error
    model.tie_weights()
    return model


def typed_config(config: Mapping[str, Any]) -> "PreTrainedConfig":
    """Make transformers' own config of the content of a config.json, with its class's defaults.

    Raises:
        UnsupportedModelError: transformers does not know the model type, or refuses a value.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    model_type = str(config.get("model_type"))
    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        typed: PreTrainedConfig = AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise _cannot_build(model_type, error.__cause__ or error) from error
    return typed


def _cannot_build(model_type: str, error: BaseException) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"transformers cannot build a {escape(model_type)} of this config: {first_line(error)}.",
        "Choose a decoder-only model that transformers knows, and check its config.json.",
    )
