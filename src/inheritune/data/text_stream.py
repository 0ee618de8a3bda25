"""Encode a text into one stream of ids in memory, joined as prepared tokens are."""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inheritune.data.document import Document
from inheritune.data.sources import plain_documents
from inheritune.data.tokenizer import TextTokenizer, encode_documents
from inheritune.data.tokens import TokenStream
from inheritune.recipe.data import Data


def encoded_documents(
    data: Data, tokenizer: TextTokenizer
) -> Iterator[tuple[Document, NDArray[np.int64]]]:
    """Read the documents of a text with their ids, ``[BOS] ids EOS``."""
    for document in plain_documents(data, tokenizer.directory):
        special = data.special_tokens_in_text or document.is_rendered
        (ids,) = encode_documents(tokenizer, [document.text], special)
        yield document, ids


class IdStream(TokenStream):
    """A stream of (n,) int64 ids that are in memory."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = ids
        self._edges = np.array([0, len(ids)])  # one shard, and no file behind it

    def _shard(self, index: int) -> NDArray[np.int64]:
        return self._ids


class TextStream(IdStream):
    """The documents of a text as ``[BOS] ids EOS``, one after the other.

    Attributes:
        num_bytes: UTF-8 bytes of the text, for bits per byte.
        fingerprint: SHA-256 of tokenizer and ids: losses compare only where it is equal.

    Raises:
        DataError: The text is missing or broken.
    """

    def __init__(self, data: Data, tokenizer: TextTokenizer) -> None:
        self.num_bytes = 0
        parts: list[NDArray[np.int64]] = []
        for document, ids in encoded_documents(data, tokenizer):
            self.num_bytes += len(document.text.encode())
            parts.append(ids)
        super().__init__(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64))
        digest = hashlib.sha256(tokenizer.sha256.encode())
        digest.update(self._ids.tobytes())
        self.fingerprint = digest.hexdigest()
