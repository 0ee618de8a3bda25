"""Describe a token directory, and show a few windows of it as text."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.data.shards import id_type
from inheritune.data.tokenizer import TextTokenizer, open_tokenizer
from inheritune.data.tokens import TokenDirectory, open_tokens
from inheritune.errors import DataError, InherituneError
from inheritune.model_files.directory import open_model
from inheritune.system.rows import Rows
from inheritune.system.strict_json import read_json

# Where a run keeps the tokenizer of its tokens, relative to their directory.
_NEARBY = (".", "../reference/start", "../reference/model", "../reference/tokenizer", "../target")


@dataclass(frozen=True)
class Inspection(Rows):
    """The result of inspecting a token directory.

    Attributes:
        facts: Source, sizes, split, overlap, tokenizer, shards and fingerprints, as JSON values.
        windows: ``split``, ``start`` (in ids), ``ids`` and ``text`` of each window.
        tokenizer: Directory of the tokenizer; None: not found, and no window has a text.
    """

    facts: dict[str, Any]
    windows: list[dict[str, Any]]
    tokenizer: Path | None

    def as_json(self) -> dict[str, Any]:
        """Return facts and windows as JSON values."""
        return self.facts | {"windows": self.windows}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each window."""
        return self.windows


def inspect_tokens(path: Path, tokenizer: Path | None, count: int, length: int) -> Inspection:
    """Describe a token directory, and show windows of it.

    Args:
        tokenizer: Directory of its tokenizer; None: look in its run, then at the run's reference.
        count: Windows of each split.
        length: Ids in a window.

    Raises:
        DataError: The directory is broken, or ``tokenizer`` is another one.
    """
    tokens = open_tokens(path)
    opened = find_tokenizer(tokens, tokenizer)
    if opened is None and (reference := _reference_of_run(path)) is not None:
        with suppress(DataError):  # the run has changed its reference since
            opened = find_tokenizer(tokens, reference)
    shown = windows(tokens, opened, count, length)
    directory = None if opened is None else opened.directory
    return Inspection(describe_tokens(tokens), shown, directory)


def _reference_of_run(tokens: Path) -> Path | None:
    """Find the reference of the run that these tokens belong to, if it is on this machine."""
    with suppress(InherituneError, KeyError, TypeError, AttributeError):
        name = read_json(tokens.resolve().parent / "run.json")["recipe"]["reference"]["model"]
        if name.startswith("embedded:") or Path(name).is_dir():
            return open_model(name, None, whole=False).path
    return None


def describe_tokens(tokens: TokenDirectory) -> dict[str, Any]:
    """Return the facts of a token directory, as JSON values."""
    manifest = tokens.manifest
    facts = tokens.summary() | {
        "path": str(tokens.path),
        "embedding_rows": manifest["embedding_rows"],
        "bytes_per_id": id_type(manifest["embedding_rows"]).itemsize,
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
