"""Describe a token directory, and show a few windows of it as text."""

from pathlib import Path
from typing import Any

import numpy as np

from inheritune.data.tokenizer import TextTokenizer, open_tokenizer
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError

# Where a run keeps the tokenizer of its tokens, relative to their directory.
_NEARBY = (".", "../reference/start", "../reference/model", "../reference/tokenizer", "../target")


def describe_tokens(tokens: TokenDirectory) -> dict[str, Any]:
    """Return the facts of a token directory, as JSON values."""
    manifest = tokens.manifest
    facts = tokens.summary() | {
        "path": str(tokens.path),
        "embedding_rows": manifest["embedding_rows"],
        "bytes_per_id": 2 if manifest["embedding_rows"] <= 1 << 16 else 4,
        "tokenizer": manifest["tokenizer"],
        "policy": manifest["policy"],
        "split": manifest["split"],
        "sources": manifest["sources"],
        "shards": [
            {key: entry[key] for key in ("name", "ids", "bytes", "documents", "max_id")}
            for entry in manifest["files"]
        ],
    }
    documents = max(1, facts["documents"])
    return facts | {
        "tokens_per_document": round(tokens.train.num_ids / documents, 1),
        "epochs_of": {
            name: round(amount / max(1, tokens.train.num_ids), 2)
            for name, amount in (("100M", 10**8), ("1B", 10**9), ("10B", 10**10))
        },
    }


def find_tokenizer(tokens: TokenDirectory, given: Path | None = None) -> TextTokenizer | None:
    """Find the tokenizer that prepared a directory, by its hash.

    Args:
        given: A directory that holds the tokenizer; None: look where a run keeps it, and return
            None where it is not there.

    Raises:
        DataError: ``given`` holds another tokenizer.
    """
    expected = tokens.manifest["tokenizer"]["sha256"]
    if given is not None:
        opened = open_tokenizer(given)
        if opened.sha256 != expected:
            raise DataError(
                f"{tokens.path} was prepared with another tokenizer than that in {given}.",
                "Name the one that was used.",
            )
        return opened
    beside = sorted(tokens.path.glob("../variants/*/*/model"))
    for directory in [*(tokens.path / name for name in _NEARBY), *beside]:
        try:
            opened = open_tokenizer(directory)
        except DataError:
            continue
        if opened.sha256 == expected:
            return opened
    return None


def windows(
    tokens: TokenDirectory, tokenizer: TextTokenizer | None, count: int, length: int
) -> list[dict[str, Any]]:
    """Read evenly spaced windows of both splits.

    Args:
        count: Windows of each split.
        length: Ids in a window.

    Returns:
        ``split``, ``start`` (in ids), ``ids`` and ``text`` of each; the text is None without a
        tokenizer.

    Raises:
        DataError: A shard is not the one that was prepared.
    """
    rows = []
    for split, stream in (("train", tokens.train), ("val", tokens.val)):
        last = max(0, stream.num_ids - length)
        for start in np.unique(np.linspace(0, last, num=count, dtype=np.int64)).tolist():
            ids = stream.ids(start, min(start + length, stream.num_ids)).tolist()
            text = None if tokenizer is None else tokenizer.decode(ids)
            rows.append({"split": split, "start": start, "ids": ids, "text": text})
    return rows
