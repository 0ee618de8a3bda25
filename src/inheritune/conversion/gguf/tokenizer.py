"""Rebuild the tokenizer and the generation config of a model from a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.conversion.gguf.container import AGAIN, Container
from inheritune.conversion.gguf.metadata import CONFIG_FROM
from inheritune.errors import SourceError, escape, first_line
from inheritune.surgery.write import to_json
from inheritune.system.files import write_bytes

# How llama.cpp's ``tokenizer.ggml.pre`` splits text before byte-level merges. transformers knows
# those of the first line; the others are split at each digit, or as GPT-2 does.
_SPLIT_BY_TRANSFORMERS = {"llama-bpe", "llama3", "llama-v3", "qwen2", "deepseek-r1-qwen", "tekken"}
_DIGIT_BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
_AS_GPT2 = {"gpt-2", "olmo", "mpt", "phi-2", "jais", "roberta-bpe"}
_SPLITS = _SPLIT_BY_TRANSFORMERS | _DIGIT_BY_DIGIT | _AS_GPT2
_GEMMA = {"gemma", "gemma2", "gemma3"}
# Keys of the vocabulary that are read here or by transformers, and those that have no effect.
_KEYS = {
    *("model", "pre", "tokens", "scores", "token_type", "merges", "add_space_prefix"),
    *("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "eot_token_id"),
    *("eom_token_id", "add_bos_token", "add_eos_token", "seperator_token_id", "mask_token_id"),
    *("cls_token_id", "add_sep_token", "token_type_count", "prefix_token_id", "suffix_token_id"),
    *("middle_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    *("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id", "fsep_token_id"),
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_GENERATION = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}


def write_tokenizer(container: Container, directory: Path, positions: int) -> str:
    """Write tokenizer, chat template and generation config of a GGUF file into a directory.

    Args:
        container: The file's header.
        directory: The new model directory.
        positions: Number of positions that the model was made for.

    Returns:
        What was rebuilt.

    Raises:
        SourceError: The file's tokenizer is of a kind that cannot be rebuilt.
    """
    _refuse_unknown(container)
    ggml = _ggml(container)
    try:
        from transformers import PreTrainedTokenizerFast

        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
            str(container.path.parent), gguf_file=container.path.name, local_files_only=True
        )
        if ggml["model"] == "gpt2" and ggml["pre"] not in _SPLIT_BY_TRANSFORMERS:
            _split(tokenizer, digit_by_digit=ggml["pre"] in _DIGIT_BY_DIGIT)
        tokenizer.model_max_length = positions
        tokenizer.save_pretrained(str(directory))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library in Rust panics with its own BaseException
        raise SourceError(
            f"the tokenizer of {container.path.name} cannot be rebuilt: {first_line(error)}.",
            CONFIG_FROM,
        ) from error
    write_bytes(directory / "generation_config.json", to_json(generation_config(container)))
    return f"rebuilt: {ggml['model']}, {len(ggml['tokens']):,} tokens"


def generation_config(container: Container) -> dict[str, Any]:
    """Return the special ids with which text begins, ends and is padded."""
    ggml = _ggml(container)
    config: dict[str, Any] = {}
    for name, key in _GENERATION.items():
        if (token := ggml.get(key)) is not None:
            config[name] = token
    ends = list(dict.fromkeys(ggml[key] for key in _ENDS if ggml.get(key) is not None))
    if ends:
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return config


def normal_tokens(container: Container) -> Mapping[int, str]:
    """Return the tokens that are neither special nor added, by id; empty without a vocabulary."""
    ggml = _ggml(container)
    tokens, kinds = ggml.get("tokens"), ggml.get("token_type")
    if not isinstance(tokens, list) or not isinstance(kinds, list):
        return {}
    return {i: str(t) for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 1}


def left_out_keys(container: Container) -> dict[str, str]:
    """Return the keys of the tokenizer that have no place in the model directory."""
    other = [
        key
        for key in container.metadata
        if key.startswith("tokenizer.")
        and key != "tokenizer.chat_template"
        and key.removeprefix("tokenizer.ggml.") not in _KEYS
    ]
    return dict.fromkeys(other, "has no place in a tokenizer of transformers")


def _ggml(container: Container) -> dict[str, Any]:
    """Return the keys of the vocabulary; its lists must have an entry for each token."""
    prefix = "tokenizer.ggml."
    ggml = {
        k.removeprefix(prefix): v for k, v in container.metadata.items() if k.startswith(prefix)
    }
    sizes = {key: len(entries) for key, entries in ggml.items() if isinstance(entries, list)}
    tokens = sizes.get("tokens", 0)
    for key in ("token_type", "scores"):
        if sizes.get(key, tokens) != tokens:
            raise SourceError(
                f"tokenizer.ggml.{key} has {sizes[key]:,} entries for {tokens:,} tokens.", AGAIN
            )
    return ggml


def _refuse_unknown(container: Container) -> None:
    """Refuse a tokenizer of which the file says too little, or what is not understood."""
    ggml = _ggml(container)
    model, tokens = ggml.get("model"), ggml.get("tokens")
    if model not in ("gpt2", "llama"):
        raise SourceError(f"its tokenizer is {escape(model, 40)}, not gpt2 or llama.", CONFIG_FROM)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise SourceError("the GGUF file has no tokenizer.ggml.tokens.", CONFIG_FROM)
    for key in ("token_type", "merges" if model == "gpt2" else "scores"):
        if not isinstance(ggml.get(key), list):
            raise SourceError(f"the GGUF file has no tokenizer.ggml.{key}.", CONFIG_FROM)
    if model == "gpt2" and ggml.get("pre") not in _SPLITS:
        shown = escape(ggml.get("pre", "nothing"), 40)
        raise SourceError(
            f"tokenizer.ggml.pre is {shown}: how this splits text is not known here.", CONFIG_FROM
        )
    template = container.metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise SourceError(
            f"tokenizer.chat_template is {escape(template, 40)}, not a text.", CONFIG_FROM
        )
    prefixed = ggml.get("add_space_prefix", True)
    if model == "llama" and prefixed is (container.architecture in _GEMMA):
        raise SourceError(
            f"tokenizer.ggml.add_space_prefix is {str(prefixed).lower()}, which the tokenizer of "
            f"{escape(container.architecture, 40)} is not.",
            CONFIG_FROM,
        )
    for key, value in ggml.items():
        is_id = key.endswith("_token_id")
        if is_id and not (type(value) is int and 0 <= value < len(tokens)):
            raise SourceError(
                f"tokenizer.ggml.{escape(key)} is {escape(value, 40)}, of {len(tokens):,} tokens.",
                CONFIG_FROM,
            )


def _split(tokenizer: Any, *, digit_by_digit: bool) -> None:
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([digits, byte_level]) if digit_by_digit else byte_level
    )
