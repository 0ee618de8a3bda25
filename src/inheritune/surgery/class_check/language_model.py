"""Tell whether a model is one that is trained and measured on text; every command asks here."""

from collections.abc import Mapping, Sequence
from typing import Any

from inheritune.errors import (
    SourceError,
    UnsupportedModelError,
    escape,
    first_line,
    listed,
    sentence,
)
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.model_class import find_class
from inheritune.model_files.transformers_log import errors_only
from inheritune.surgery.class_check.ask_class import is_plainly_causal
from inheritune.surgery.class_check.meta_load import load_on_meta
from inheritune.surgery.class_check.text_model import has_text_model

_ONLY_CUT = "layers can be taken from it, but it is not trained, measured or continued here"


def language_problem(
    config: Mapping[str, Any], tensors: Mapping[str, Sequence[Any]]
) -> dict[str, str]:
    """Say why `AutoModelForCausalLM` of transformers does not load a model whole.

    Args:
        tensors: Safetensors dtype and shape by name.

    Returns:
        ``problem``, which goes on after the model's name, and ``hint``; empty if it does.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    own = find_class(config)
    if isinstance(own, str):
        hint = "Training runs no code of a model directory; choose a model that transformers knows."
        return {"problem": f"can be cut only: {own}.", "hint": hint}
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(own.config_class, None)
    if causal is None:
        hint = "Choose a language model."
        if has_text_model(config):
            hint = "Take its language model out: `inheritune inherit MODEL LAYERS OUT --text-only`."
        problem = f"is a {own.__name__}, which is no model of text alone: {_ONLY_CUT}."
        return {"problem": problem, "hint": hint}
    try:
        missing = load_on_meta(causal, config, tensors).missing
    except ImportError as error:
        problem = (
            f"cannot be loaded: {causal.__name__} needs a package: {sentence(first_line(error))}"
        )
        return {"problem": problem, "hint": "Install it."}
    except SourceError as error:
        return {"problem": f"cannot be loaded: {error.message}", "hint": error.hint}
    if not missing:
        return {}
    lost = f"{causal.__name__} would draw {listed(missing, 1)} at random"
    if own is not causal and not own.can_generate():
        return {
            "problem": f"is a {own.__name__} and has no language-model head ({lost}): {_ONLY_CUT}.",
            "hint": "Name the language model that it was made from.",
        }
    hint = "Download it again; or set tie_word_embeddings in config.json, if its head is tied."
    return {"problem": f"is not whole: {lost}.", "hint": hint}


def refuse_no_language_model(model: ModelDirectory) -> None:
    """Refuse a model that has no language-model head, or is no model of text alone.

    Raises:
        UnsupportedModelError: It is none; whether layers can be taken from it is another question.
    """
    if is_plainly_causal(model):
        return
    tensors = {tensor.name: [tensor.dtype, tensor.shape] for tensor in model.tensors.values()}
    with errors_only():
        problem = language_problem(model.config, tensors)
    if problem:
        raise UnsupportedModelError(f"{escape(model.name)} {problem['problem']}", problem["hint"])
