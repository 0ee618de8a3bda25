"""Decide by a document's hash whether it is in the sample, and whether it is held out."""

import hashlib
from dataclasses import dataclass

from inheritune.recipe.data import Data

MAX_DOCUMENT_BYTES = 256 << 20  # it is tokenized in memory
SPLIT_RULE = "inheritune-split-1"
_SAMPLE_RULE = "inheritune-sample-1"
PLACES = 2**64  # a document is chosen if its place is below share * PLACES


@dataclass(frozen=True)
class Document:
    """One text, under a name that is the same on every machine that has the same files."""

    name: str  # path relative to the source, in posix form; ``path:line`` for a row
    text: str  # never blank, free of NUL, encodable as UTF-8
    train_only: bool = False  # never held out
    is_rendered: bool = False  # by a chat template: literal special tokens in it are meant


def held_out(document: Document, data: Data) -> bool:
    """Return whether a document belongs to the validation set; that depends on itself alone.

    Its text is hashed, or its name, as ``data.split_by`` says. Nothing is held out where the data
    have a ``val_source`` of their own.
    """
    place = split_place(document, data)
    return place is not None and place < data.val_fraction * PLACES


def split_place(document: Document, data: Data) -> int | None:
    """Return the place of a document, in [0, `PLACES`): it is held out if its share is below.

    None if it is never held out.
    """
    if data.val_source is not None or document.train_only:
        return None
    key = document.text if data.split_by == "text" else document.name
    return _place(SPLIT_RULE, key.encode(errors="surrogateescape"))


def sampled(document: Document, share: float | None) -> bool:
    """Return whether a document is in a random subset of its source; its text alone decides.

    A larger share contains every smaller one, and is independent of what is held out.

    Args:
        share: ``data.sample`` or ``data.val_sample``, in (0, 1]; None: every document is.
    """
    return share is None or _place(_SAMPLE_RULE, document.text.encode()) < share * PLACES


def _place(rule: str, content: bytes) -> int:
    # uint64(first 8 bytes of SHA-256("rule:content"))
    digest = hashlib.sha256(f"{rule}:".encode() + content).digest()
    return int.from_bytes(digest[:8], "little")
