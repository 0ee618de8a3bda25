"""Take config and tokenizer of a GGUF file from the model that the file was made from."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.conversion.gguf.architectures import Architecture
from inheritune.conversion.gguf.container import Container
from inheritune.conversion.gguf.tokenizer import normal_tokens
from inheritune.errors import SourceError, escape, first_line
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import open_model
from inheritune.model_files.refusals import refuse_config
from inheritune.model_files.safe_path import safe_file
from inheritune.system.strict_json import MODEL_FILE, read_json_object

_OTHER = "Name the model that the file was made from."
# Fields that say nothing about what the weights compute, or of which the file holds a part only.
_NOT_COMPARED = {
    *("architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("sliding_window", "layer_types", "max_position_embeddings", "no_rope_layers"),
}
_TOLERANCE = 1e-6  # relative: the file holds numbers as fp32


def config_of(model: str, architecture: Architecture, rebuilt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a model, after a comparison with what the GGUF file says.

    Args:
        model: Model directory, with or without weights, or Hub id.
        architecture: The file's.
        rebuilt: The config that the file's metadata gives; without ``rope_parameters`` if they have
            a scaling that the file does not tell.

    Raises:
        SourceError: The two are configs of different models.
    """
    path = safe_file(_directory(model), "config.json")
    config = read_json_object(path, MODEL_FILE, "the config")
    refuse_config(config, path)
    types = {architecture.model_type, *architecture.other_types}
    if config.get("model_type") not in types:
        raise SourceError(
            f"{escape(model, 200)} is of type {escape(config.get('model_type'), 40)}, the GGUF "
            f"file of {architecture.model_type}.",
            _OTHER,
        )
    own, of_file = _normal(config), _normal(dict(rebuilt))
    is_scaled = (own.get("rope_parameters") or {}).get("rope_type") != "default"
    if architecture.rotary and "rope_parameters" not in rebuilt and not is_scaled:
        raise SourceError(
            f"{escape(model, 200)} does not scale rotary positions, but the GGUF file does.", _OTHER
        )
    for key in rebuilt.keys() - _NOT_COMPARED:
        if not _agree(own.get(key), of_file.get(key)):
            raise SourceError(
                f"{key} is {escape(own.get(key), 200)} in the config of {escape(model, 200)}, but "
                f"{escape(of_file.get(key), 200)} in the GGUF file.",
                _OTHER,
            )
    return config


def copy_tokenizer(model: str, container: Container, directory: Path) -> str:
    """Copy tokenizer and other side files of a model, after a comparison with the file's tokens.

    Raises:
        SourceError: The tokenizer gives other tokens for the ids than the file.
    """
    source = _directory(model)
    copy_side_files(source, directory)
    expected = normal_tokens(container)
    if not expected:
        return "copied: not compared, the file has no vocabulary"
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    except Exception as error:  # whatever it says, it is about these files
        raise SourceError(
            f"transformers cannot read the tokenizer of {escape(model, 200)}: {first_line(error)}."
        ) from error
    for index, token in expected.items():
        if tokens.get(index) != token:
            raise SourceError(
                f"token {index:,} of {escape(model, 200)} is "
                f"{escape(repr(tokens.get(index)), 40)}, in the GGUF file "
                f"{escape(repr(token), 40)}.",
                _OTHER,
            )
    return f"copied: {len(expected):,} tokens are those of the file"


def _directory(model: str) -> Path:
    path = Path(model).expanduser()
    return path if path.is_dir() else open_model(model, whole=False).path


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as its class reads it, with defaults and under today's names."""
    from transformers import AutoConfig

    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        normal: dict[str, Any] = AutoConfig.for_model(config["model_type"], **fields).to_dict()
    except Exception as error:  # whatever it says, it is about this config
        raise SourceError(f"transformers refuses the config: {first_line(error)}.") from error
    return normal


def _agree(own: Any, of_file: Any) -> bool:
    """Tell whether a value is the one of the file; what the file does not have is not compared."""
    if isinstance(of_file, Mapping) and isinstance(own, Mapping):
        if {own.get("rope_type"), of_file.get("rope_type")} == {"llama3"}:
            return _same_llama3(own, of_file)
        return all(_agree(own.get(key), value) for key, value in of_file.items())
    if isinstance(own, int | float) and isinstance(of_file, int | float):
        return math.isclose(own, of_file, rel_tol=_TOLERANCE)
    return bool(own == of_file)


def _same_llama3(own: Mapping[str, Any], of_file: Mapping[str, Any]) -> bool:
    """Compare scalings by the ratios that their factors depend on."""

    def ratios(p: Mapping[str, Any]) -> list[float]:
        span = p["high_freq_factor"] - p["low_freq_factor"]
        original = p["original_max_position_embeddings"]
        return [p["rope_theta"], p["factor"], original / span, p["low_freq_factor"] / span]

    return all(
        math.isclose(a, b, rel_tol=_TOLERANCE)
        for a, b in zip(ratios(own), ratios(of_file), strict=True)
    )
