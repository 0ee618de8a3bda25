"""Check that every id that a tokenizer gives has a row in the model's embedding."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.model_files.copy import open_source
from inheritune.model_files.layers import is_tower
from inheritune.model_files.safetensors import Tensor
from inheritune.system.strict_json import MODEL_FILE, read_json_object

__all__ = ["refuse_ids_without_rows"]

_EMBEDDINGS = {
    *("embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings", "embedding"),
    "embeddings",
}
# The vocabulary of a Unigram model is a list of pairs; the place in it is the id.
_UNIGRAM = re.compile(rb'"type"\s*:\s*"Unigram"')
_CHUNK = 2**20
_OVERLAP = 128
# No known model has a larger tokenizer.json; parsing one takes ten times its size in memory.
_MAX_BYTES = 64 * 2**20
_ROLES = ("bos_token", "eos_token")


def refuse_ids_without_rows(directory: Path, tensors: Iterable[Tensor]) -> None:
    """Refuse a model whose tokenizer gives ids that its embedding has no row for.

    Special tokens that plain text never becomes, such as the place of an image, are a warning
    only, unless they begin or end a document.
    """
    rows = _rows(tensors)
    path = directory / "tokenizer.json"
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


def _rows(tensors: Iterable[Tensor]) -> int | None:
    rows = [
        tensor.shape[0]
        for tensor in tensors
        if len(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and tensor.name.split(".")[-2] in _EMBEDDINGS
        and not is_tower(tensor.name)
    ]
    return max(rows, default=None)


def _may_exceed(path: Path, rows: int) -> bool:
    """Tell whether some number in the file could be too large an id; 30 MB take 0.1 s.

    Sound files pass here: parsing one would take a second and half a gigabyte.
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

    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path} is larger than {_MAX_BYTES:,} bytes.", "Download it again.")
    try:
        tokenizer: Any = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception:  # the library raises plain Exception; who needs the tokenizer will say so
        return {}, {}
    beyond = {t: i for t, i in tokenizer.get_vocab(with_added_tokens=True).items() if i >= rows}
    added = tokenizer.get_added_tokens_decoder() if beyond else {}
    special = {t: i for t, i in beyond.items() if i in added and added[i].special}
    return {t: i for t, i in beyond.items() if t not in special}, special


def _roles(directory: Path) -> set[str]:
    """Return the tokens that are put around documents."""
    tokens: set[str] = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).is_file():
            config = read_json_object(directory / name, MODEL_FILE, "the tokenizer's config")
            entries = [entry for role in _ROLES if (entry := config.get(role))]
            tokens |= {str(e.get("content") if isinstance(e, dict) else e) for e in entries}
    return tokens
