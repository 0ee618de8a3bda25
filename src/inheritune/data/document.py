"""One text, and what its hash decides: whether it is taken, and whether it is held out."""

import hashlib
from dataclasses import dataclass

from inheritune.recipe.schema import Data

__all__ = [
    "SAMPLE_RULE",
    "SPLIT_RULE",
    "Document",
    "below_share",
    "held_out",
    "sampled",
    "val_sampled",
]

SPLIT_RULE = "inheritune-split-1"
SAMPLE_RULE = "inheritune-sample-1"


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: Path relative to the source, in posix form; ``path:line`` for a row. The same on
            every machine that has the same files.
        text: Never blank, free of NUL, encodable as UTF-8.
        train_only: Never held out.
    """

    name: str
    text: str
    train_only: bool = False


def held_out(document: Document, data: Data) -> bool:
    """Whether a document belongs to the validation set; depends on nothing but itself.

    Args:
        document: Its text is hashed, or its name, as ``data.split_by`` says.
        data: With a ``val_source`` of its own nothing is held out.
    """
    if data.val_source is not None or document.train_only:
        return False
    key = document.text if data.split_by == "text" else document.name
    return below_share(SPLIT_RULE, key.encode(errors="surrogateescape"), data.val_fraction)


def sampled(document: Document, data: Data) -> bool:
    """Whether a document is in the random subset of ``data.sample``; depends on its text alone.

    A larger share contains every smaller one, and says nothing about what is held out.
    """
    return data.sample is None or below_share(SAMPLE_RULE, document.text.encode(), data.sample)


def val_sampled(document: Document, data: Data) -> bool:
    """Whether a document of ``data.val_source`` is in the subset of ``data.val_sample``."""
    share = data.val_sample
    return share is None or below_share(SAMPLE_RULE, document.text.encode(), share)


def below_share(rule: str, content: bytes, share: float) -> bool:
    """Whether the first 64 bits of SHA-256 of ``rule:content`` lie below a share of their range."""
    digest = hashlib.sha256(f"{rule}:".encode() + content).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64
