"""Refuse model directories whose layers cannot be taken, with a way out for each."""

import re
import shlex
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inheritune.errors import NoWeightsError, SourceError, UnsupportedModelError, escape
from inheritune.model_files.addresses import missing_directory
from inheritune.model_files.config import text_config
from inheritune.model_files.copy import MAX_SIDE_BYTES, open_source
from inheritune.model_files.foreign_layouts import find_layout, names_in, refusal
from inheritune.model_files.layers import is_tower
from inheritune.model_files.quantisation import refuse_quantised
from inheritune.model_files.safetensors import Tensor
from inheritune.system.strict_json import MODEL_FILE, read_json_object

# Model types that have no single stack of layers that feeds its own head, with the reason.
_FAMILIES = {
    **dict.fromkeys(["blt"], "its five stacks of layers have separate depths"),
    **dict.fromkeys(
        ["encoder-decoder", "speech-encoder-decoder", "vision-encoder-decoder"],
        "an encoder and a decoder have a config each",
    ),
    **dict.fromkeys(["hrm_text"], "its stacks of layers are run in a loop"),
    **dict.fromkeys(["xlm", "flaubert"], "its layers are spread over parallel lists"),
    **dict.fromkeys(
        ["gemma4_assistant", "gemma4_unified_assistant", "muse_glimmer_assistant"],
        "it reads the states of another model",
    ),
    **dict.fromkeys(
        [
            *("albert", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text"),
            *("distilbert", "electra", "ernie", "megatron-bert", "mobilebert", "rembert"),
            *("roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
            *("xlm-roberta-xl", "xmod", "modernbert", "deberta", "deberta-v2"),
        ],
        "it is an encoder",
    ),
}
# Keys that transformers itself writes. Text under any other key with an underscore may set an
# internal attribute that names code (CVE-2026-4372); a number, a truth value or null names none.
_UNDERSCORED = {
    *("_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_frame_rate"),
    *("_diffusers_version", "_experts_implementation", "_from_model_config", "_name_or_path"),
    *("_pad_token_id", "_remove_final_layer_norm", "_sliding_window_pattern"),
}
# --- directories and configs ---


def refuse_directory(directory: Path) -> None:
    """Refuse a directory without a complete model in safetensors; none of its files is opened."""
    if directory.is_file():
        raise refused_file(directory)
    if not directory.is_dir():
        raise missing_directory(str(directory))
    refuse_files(names_in(directory), str(directory))


def refused_file(path: Path) -> SourceError:
    """Word the refusal of a file where a directory is needed."""
    is_gguf = path.suffix == ".gguf"
    with suppress(OSError), path.open("rb") as stream:
        is_gguf |= stream.read(4) == b"GGUF"  # Ollama's files have no ending
    if is_gguf:
        return UnsupportedModelError(
            f"{path} is a GGUF file, but only safetensors are read.",
            f"Convert it: `inheritune convert {shlex.quote(str(path))} OUT`, then name OUT.",
        )
    return SourceError(f"{path} is a file.", "Name the model directory that holds it.")


def refuse_files(names: Collection[str], directory: str) -> None:
    """Refuse a directory, local or on the Hub, by the names of its files."""
    if "model.safetensors" in names or "model.safetensors.index.json" in names:
        if "config.json" not in names:
            raise SourceError(f"{directory} has no config.json.", "Download the model again.")
        return
    if found := find_layout(names):
        raise refusal(*found, directory)
    raise NoWeightsError(
        f"{directory} holds neither model.safetensors nor model.safetensors.index.json.",
        "Name a Hugging Face model directory with safetensors weights.",
    )


def refuse_unsafe_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a config that names code to load.

    ``auto_map`` is allowed: the code that it names is copied, and never run.
    """
    waiting: list[Any] = [config]  # a list instead of recursion: the file may nest 50 levels
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                _refuse_unsafe_key(key, item, path)
                waiting.append(item)


def _refuse_unsafe_key(key: str, value: Any, path: Path) -> None:
    hint = (
        "Delete the key, if you trust the rest of the model; of a Hub model in a copy: "
        "`hf download ID --local-dir COPY`."
    )
    is_harmless = isinstance(value, int | float | None) and not key.startswith("__")
    if key.startswith("_") and key not in _UNDERSCORED | {"__float__"} and not is_harmless:
        shown = f"{escape(key)!r} = {escape(repr(value), 40)}"
        raise SourceError(f"{path} has the unknown key {shown}, which may name code.", hint)
    if "implementation" in key or "kernel_repo" in key or key == "backbone":
        names = list(value.values()) if isinstance(value, Mapping) else [value]
        if any(isinstance(n, str) and not n.replace("_", "").isalnum() for n in names):
            raise SourceError(
                f"{path} asks for code from elsewhere: {escape(key)} = {escape(repr(value))}.", hint
            )
    if key == "trust_remote_code" and value:
        warnings.warn(f"{path} says trust_remote_code: ignored", stacklevel=2)


def refuse_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a config alone: of quantised weights, naming code, or of an unsupported type.

    Args:
        path: The config's file, in the model's directory.
    """
    refuse_quantised(config, (), path.parent)
    refuse_unsafe_config(config, path)
    refuse_unsupported_type(config, path.parent)


def refuse_unsupported_type(config: Mapping[str, Any], path: Path) -> None:
    """Refuse model types whose layers cannot be cut off."""
    text = text_config(config)
    for section in (config, text):
        model_type = section.get("model_type")
        if isinstance(model_type, str) and model_type in _FAMILIES:
            raise UnsupportedModelError(
                f"{path} is a {model_type} model, not supported: {_FAMILIES[model_type]}.",
                "Choose a decoder-only model.",
            )
    if config.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        raise UnsupportedModelError(
            f"{path} is an encoder-decoder model, not supported: it has two stacks of layers.",
            "Choose a decoder-only model.",
        )


# --- an adapter beside the model ---


def warn_of_adapter(directory: Path) -> None:
    """Say that an adapter beside a model is no part of it."""
    if (directory / "adapter_config.json").exists():
        warnings.warn(
            f"{directory} holds an adapter beside the model, which is not merged: "
            f"{_merge(directory)} merges it",
            stacklevel=4,
        )


def refuse_attached_adapter(directory: Path) -> None:
    """Refuse to load a model with an adapter beside it where transformers would attach that."""
    if (directory / "adapter_config.json").exists() and find_spec("peft"):
        raise UnsupportedModelError(
            f"{directory} holds an adapter beside the model, which transformers loads with it, "
            "since peft is installed.",
            f"Merge it: {_merge(directory)}; or move adapter_config.json elsewhere.",
        )


def _merge(directory: Path) -> str:
    here = shlex.quote(str(directory))
    return f"`inheritune convert {here} OUT --base {here}`"


# --- ids of the tokenizer without a row in the embedding ---

_EMBEDDINGS = {
    *("embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings", "embedding"),
    "embeddings",
}
# The vocabulary of a Unigram model is a list of pairs; the place in it is the id.
_UNIGRAM = re.compile(rb'"type"\s*:\s*"Unigram"')
_CHUNK = 2**20
_OVERLAP = 128
MAX_TOKENIZER_BYTES = MAX_SIDE_BYTES  # parsing one takes ten times its size in memory
_ROLES = ("bos_token", "eos_token")


def refuse_ids_without_rows(directory: Path, tensors: Iterable[Tensor]) -> None:
    """Refuse a model whose tokenizer has ids without a row in the embedding.

    Special tokens that plain text never yields, such as an image placeholder, only cause a warning,
    unless they begin or end a document.
    """
    rows = rows_of_embedding(tensors)
    path = directory / "tokenizer.json"
    if path.is_file() and path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise SourceError(
            f"{path} is larger than {MAX_TOKENIZER_BYTES:,} bytes.", "Download it again."
        )
    if rows is None or not path.is_file() or not _may_exceed(path, rows):
        return
    plain, special = _tokens_beyond(path, rows)
    roles = _roles(directory) if special else set()
    if broken := plain | {token: i for token, i in special.items() if token in roles}:
        token, number = max(broken.items(), key=lambda item: item[1])
        raise SourceError(
            f"{path} gives the id {number} to {escape(token)!r}, but the embedding has {rows} "
            "rows.",
            "The tokenizer belongs to another model, or was extended without the embedding.",
        )
    if special:
        token, number = max(special.items(), key=lambda item: item[1])
        warnings.warn(
            f"{path} gives the id {number} to the special token {escape(token)!r}, but the "
            f"embedding has {rows} rows: text must not hold it",
            stacklevel=2,
        )


def rows_of_embedding(tensors: Iterable[Tensor]) -> int | None:
    """Return the rows of the text model's input embedding; None where no name tells which it is."""
    embedding = input_embedding(tensors)
    return None if embedding is None else embedding.shape[0]


def input_embedding(tensors: Iterable[Tensor]) -> Tensor | None:
    """Find the text model's input embedding by its name; of several, the one with most rows."""
    found = [
        tensor
        for tensor in tensors
        if len(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and tensor.name.split(".")[-2] in _EMBEDDINGS
        and not is_tower(tensor.name)
    ]
    return max(found, key=lambda tensor: tensor.shape[0], default=None)


def _may_exceed(path: Path, rows: int) -> bool:
    """Tell whether a number in tokenizer.json could be an id of ``rows`` or more.

    This takes 0.1 s for 30 MB; parsing the file would take a second and half a gigabyte.
    """
    digits = len(str(rows))
    large = re.compile(rb'"\s*:\s*([0-9]{%d,})' % digits)
    # Pieces overlap, so that no number is cut in two.
    brackets, is_unigram, overlap = 0, False, b""
    with open_source(path) as file:
        while data := file.read(_CHUNK):
            piece = overlap + data
            if any(int(n[:19]) >= rows for n in large.findall(piece)):
                return True
            brackets += data.count(b"[")
            is_unigram = is_unigram or _UNIGRAM.search(piece) is not None
            overlap = data[-_OVERLAP:]
    return is_unigram and brackets > rows


def _tokens_beyond(path: Path, rows: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return plain and special tokens with an id of ``rows`` or more."""
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception:  # the library raises plain Exception; loading the tokenizer will report it
        return {}, {}
    beyond = {t: i for t, i in tokenizer.get_vocab(with_added_tokens=True).items() if i >= rows}
    added = tokenizer.get_added_tokens_decoder() if beyond else {}
    special = {t: i for t, i in beyond.items() if i in added and added[i].special}
    return {t: i for t, i in beyond.items() if t not in special}, special


def _roles(directory: Path) -> set[str]:
    """Return the tokens that begin or end a document."""
    tokens: set[str] = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).is_file():
            config = read_json_object(directory / name, MODEL_FILE, "the tokenizer's config")
            entries = [entry for role in _ROLES if (entry := config.get(role))]
            tokens |= {str(e.get("content") if isinstance(e, dict) else e) for e in entries}
    return tokens
