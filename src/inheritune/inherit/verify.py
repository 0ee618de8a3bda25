"""Proof that a target is whole, by the model class itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inheritune.checkpoints.layers import numbered
from inheritune.checkpoints.source import open_model, read_json
from inheritune.errors import SourceError
from inheritune.regular_file import escape

__all__ = ["check_complete"]


def check_complete(target: Path, container: str | None = None) -> str:
    """Load a model directory on the meta device, and refuse it if any weight would be fresh.

    Names, shapes, ties and the class's own conversions are checked by transformers itself; no
    weight is read, and no code of the directory is run.

    Args:
        target: Model directory.
        container: What stands before the number of a layer in the names of its tensors; None:
            found out.

    Returns:
        ``"complete: LlamaForCausalLM"``, or ``"not checked: "`` and why: a class that transformers
        does not have, or whose other requirements are missing.

    Raises:
        SourceError: The class refuses config or weights, misses a weight, or leaves one unused
            that belongs to a numbered list outside the layers.
    """
    config = read_json(target / "config.json", "the config")
    if isinstance(model_class := _model_class(config), str):
        return f"not checked: {model_class}"
    name = model_class.__name__
    try:
        with _quiet():
            _, info = model_class.from_pretrained(
                target,
                device_map="meta",
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except ImportError as error:
        return f"not checked: {name} needs a package: {_first_line(error)}"
    except Exception as error:  # whatever the class says, it is about these files
        raise SourceError(
            f"{name} refuses the model it would be cut to: {_first_line(error)}",
            "Choose another number of layers, or report it with the model's name.",
        ) from error
    if fresh := sorted(info["missing_keys"]):
        raise SourceError(
            f"{name} would fill {len(fresh)} weights at random, such as {escape(fresh[0])}.",
            "The reference lacks them, or its config is wrong (tie_word_embeddings?).",
        )
    if unused := _unexplained(info["unexpected_keys"], target, container):
        raise SourceError(
            f"{name} does not use {escape(unused)}, which may belong to a layer.",
            "Report it with the model's name.",
        )
    return f"complete: {name}"


def _model_class(config: Mapping[str, Any]) -> Any:
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return "config.json names no model_type"
    try:
        config_class = type(AutoConfig.for_model(model_type))
    except (ValueError, KeyError):
        return f"transformers does not know the model type {escape(model_type)}"
    except ImportError as error:
        return f"{escape(model_type)} needs a package: {_first_line(error)}"
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        found = getattr(transformers, names[0], None) if names[0].isidentifier() else None
        if isinstance(found, type) and getattr(found, "config_class", None) is config_class:
            return found
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    return found or f"transformers has no causal language model of type {escape(model_type)}"


def _unexplained(names: Any, target: Path, container: str | None) -> str:
    """A left-over of a numbered list outside the layers. Stray buffers are left-overs too."""
    if not names:
        return ""
    layers = container or open_model(str(target)).container.prefix
    for name in sorted(names):
        found = numbered(name)
        # The class may call its layers with or without its own prefix.
        if found and not (found[0].endswith(layers) or layers.endswith(found[0])):
            return str(name)
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return escape(lines[0] if lines else type(error).__name__, 200)
