"""Write a token directory: the shards and document hashes of both splits, then the manifest."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.overlap import DocumentHashes, document_overlap, ngram_share
from inheritune.data.shards import SHARD_VERSION, ShardEntry, ShardWriter, map_shard
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import MANIFEST_FORMAT, TokenStream, canonical_digest, fingerprint_of

_WORDS = 20  # ids at the beginning of a document that are shown


class TokenWriter:
    """Writes documents into the shards of ``"train"`` and ``"val"``.

    Args:
        shards: Directory of the shards, which becomes the token directory.
        scratch: Directory of the lists of document hashes.
        rows: Rows of the model's embedding; decides the width of an id.
        shard_ids: Ids in a full shard.
    """

    def __init__(
        self, shards: Path, scratch: Path, tokenizer: TextTokenizer, rows: int, shard_ids: int
    ) -> None:
        self._shards, self._tokenizer, self._rows = shards, tokenizer, rows
        self.train = ShardWriter(shards, "train", rows, shard_ids)
        self.val = ShardWriter(shards, "val", rows, shard_ids)
        self.splits = {"train": self.train, "val": self.val}
        self.hashes = {split: DocumentHashes(scratch / f"hashes-{split}") for split in self.splits}

    @property
    def num_shards(self) -> int:
        """Number of complete shards, of both splits."""
        return len(self.train.entries) + len(self.val.entries)

    def add(self, split: str, ids: NDArray[Any], text_hash: int) -> None:
        """Append a document: its ids, EOS included, and 64 bits that identify its content."""
        self.splits[split].add(ids)
        self.hashes[split].add(text_hash)

    def close(self) -> None:
        """Write the last shard of both splits."""
        self.train.close()
        self.val.close()

    def document_overlap(self) -> dict[str, float]:
        """Compare the documents of both splits; see `overlap.document_overlap`."""
        return document_overlap(self.hashes["val"], self.hashes["train"])

    def ngram_overlap(self, on_ids: Callable[[int], None]) -> dict[str, Any]:
        """Compare the 13-grams of both splits, once they are closed; see `overlap.ngram_share`."""
        val, train = (
            TokenStream(self._shards, writer.entries, self._rows)
            for writer in (self.val, self.train)
        )
        return ngram_share(val, train, self._tokenizer.eos, on_ids)

    def first_words(self, count: int = 3) -> list[str]:
        """Return the first words of some training documents, once the shards are closed."""
        entries = self.train.entries
        ends = np.cumsum([entry.documents for entry in entries])
        chosen = np.unique(np.linspace(0, ends[-1] - 1, num=count, dtype=np.int64)).tolist()
        shards = np.searchsorted(ends, chosen, side="right").tolist()
        return [
            self._words(entries[shard], number - int(ends[shard]) + entries[shard].documents)
            for number, shard in zip(chosen, shards, strict=True)
        ]

    def _words(self, entry: ShardEntry, number: int) -> str:
        """Return the first words of a document of a shard."""
        ids = map_shard(self._shards, entry, self._rows)
        starts = np.fromfile((self._shards / entry.name).with_suffix(".idx"), dtype="<u8")
        begin, *ends = (int(start) for start in starts[number : number + 2])
        end = min(begin + _WORDS, ends[0] if ends else entry.ids)
        return self._tokenizer.decode(ids[begin:end].tolist())

    def manifest(
        self,
        *,
        bos: int | None,
        special_tokens_in_text: bool,
        split: dict[str, Any],
        **facts: Any,
    ) -> dict[str, Any]:
        """Describe what was written; fingerprints cover the content, and not the other facts.

        Args:
            bos: Id before every document; None where some lack it.
            special_tokens_in_text: Whether special tokens were looked for in text.
            split: The rule by which documents were held out.
            facts: Further entries of the manifest.
        """
        identity = {"sha256": self._tokenizer.sha256, "rows": self._tokenizer.rows}
        policy = {
            "bos": bos,
            "eos": self._tokenizer.eos,
            "special_tokens_in_text": special_tokens_in_text,
        }
        train_files, val_files = (
            [asdict(entry) for entry in writer.entries] for writer in (self.train, self.val)
        )
        content = {
            "format": MANIFEST_FORMAT,
            "shard_version": SHARD_VERSION,
            "tokenizer": identity,
            "embedding_rows": self._rows,
            "policy": policy,
            "split": split,
            "files": train_files + val_files,
        }
        return content | {
            "fingerprint": fingerprint_of(content),
            "val_fingerprint": canonical_digest([identity, policy, val_files]),
            "documents": self.train.documents,
            "val_documents": self.val.documents,
            **facts,
        }
