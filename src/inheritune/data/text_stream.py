"""Encode a text into one stream of ids in memory, joined as prepared tokens are."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inheritune.data.sources import plain_documents
from inheritune.data.tokenizer import TextTokenizer, encode_documents
from inheritune.data.tokens import TokenStream


class IdStream(TokenStream):
    """A stream of (n,) int64 ids that are in memory."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = ids
        self._edges = np.array([0, len(ids)])  # one shard, and no file behind it

    def _shard(self, index: int) -> NDArray[np.int64]:
        return self._ids


class TextStream(IdStream):
    """The documents of some files as ``[BOS] ids EOS``, one after the other.

    Args:
        texts: Files or folders, as ``data.source`` takes them.

    Attributes:
        num_bytes: UTF-8 bytes of the text, for bits per byte.
        fingerprint: SHA-256 of tokenizer and ids: losses compare only where it is equal.

    Raises:
        DataError: The text is missing or broken.
    """

    def __init__(self, texts: Sequence[Path], tokenizer: TextTokenizer) -> None:
        self.num_bytes = 0
        parts: list[NDArray[np.int64]] = []
        for document in plain_documents([str(path) for path in texts]):
            self.num_bytes += len(document.text.encode())
            parts += encode_documents(tokenizer, [document.text])
        super().__init__(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64))
        digest = hashlib.sha256(tokenizer.sha256.encode())
        digest.update(self._ids.tobytes())
        self.fingerprint = digest.hexdigest()
