"""Ids that another program wrote, as a token directory like any other."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.document import SPLIT_RULE
from inheritune.data.flat_files import FlatFile, open_flat_file
from inheritune.data.manifest import new_manifest
from inheritune.data.overlap import DocumentHashes, duplicate_share, ngram_share
from inheritune.data.shards import SHARD_IDS, ShardWriter
from inheritune.data.staging import Journal, is_prepared, publish, staging_directory
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenDirectory, TokenStream, open_tokens
from inheritune.errors import DataError, Interrupted
from inheritune.system.progress import Listener, Progress, silent

__all__ = ["IMPORTED", "FlatFiles", "import_tokens"]

IMPORTED = "imported"  # the key of a request that was no recipe's
_PIECE = 1 << 20  # ids copied at a time
_TASK = "importing tokens"


@dataclass(frozen=True)
class FlatFiles:
    """What to import.

    Attributes:
        train: Files of ids, in order.
        val: A validation set in files of its own; without, documents are held out.
        val_fraction: Share of documents held out, by a hash of their ids.
        width: Bytes of an id, 2 or 4; None: what the files say, or else what their ids allow.
    """

    train: list[Path]
    val: list[Path]
    val_fraction: float = 0.002
    width: int | None = None


def import_tokens(
    files: FlatFiles,
    tokenizer: TextTokenizer,
    embedding_rows: int,
    out: Path,
    on_progress: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
    shard_ids: int = SHARD_IDS,
) -> TokenDirectory:
    """Copy ids into token shards, document by document.

    Documents end where the index of a ``.ds`` file says, or else at EOS; one that lacks its EOS
    is given it. No id is changed.

    Args:
        files: What to import.
        tokenizer: It made the ids; nothing in the files can prove that.
        embedding_rows: Rows of the model's embedding.
        out: The token directory.
        on_progress: Told how far it is.
        stop: Asked now and then.
        shard_ids: Ids in a full shard.

    Raises:
        DataError: A file is broken, or holds too little, or ``out`` holds something else.
        Interrupted: ``stop`` said so; nothing is left behind.
        MachineError: The disk is full, or another process fills ``out``.
    """
    opened = [
        [open_flat_file(path, min(embedding_rows, tokenizer.rows), files.width) for path in paths]
        for paths in (files.train, files.val)
    ]
    request = {
        IMPORTED: [[[f.path.name, f.path.stat().st_size, f.width] for f in part] for part in opened]
        + [files.val_fraction],
        "the tokenizer": [tokenizer.sha256, tokenizer.bos, tokenizer.eos],
        "embedding rows": embedding_rows,
        "ids in a shard": shard_ids,
    }
    if not is_prepared(out):
        with staging_directory(out) as journal:
            if not is_prepared(out):
                journal.clear()
                job = _Import(files, tokenizer, embedding_rows, journal, on_progress, stop)
                manifest = job.run(opened[0], opened[1], shard_ids)
                publish(journal.shards, manifest | {"request": request}, out)
    tokens = open_tokens(out)
    if tokens.manifest["request"] != request:
        raise DataError(
            f"{out} holds other tokens.", "Delete that directory, or choose another one."
        )
    return tokens


@dataclass
class _Import:
    files: FlatFiles
    tokenizer: TextTokenizer
    rows: int
    journal: Journal
    on_progress: Listener
    stop: Callable[[], bool]
    val_bytes: int = 0
    done: int = 0
    total: int = 0
    without_bos: int = 0

    def run(self, train: list[FlatFile], val: list[FlatFile], shard_ids: int) -> dict[str, Any]:
        shards, rows = self.journal.shards, self.rows
        self.total = sum(len(file.ids) for file in train + val)
        writers = {s: ShardWriter(shards, s, rows, shard_ids) for s in ("train", "val")}
        hashes = {split: self.journal.hashes(split) for split in writers}
        for is_val, part in ((True, val), (False, train)):
            for file in part:
                self._copy(file, is_val, writers, hashes)
        entries = writers["train"].close() + writers["val"].close()
        self._check(writers)
        streams = {s: TokenStream(shards, writers[s].entries, rows) for s in writers}
        overlap = self._overlap(streams["val"], streams["train"], hashes)
        by_hash = {"rule": SPLIT_RULE, "by": "ids", "val_fraction": self.files.val_fraction}
        policy = {
            "bos": None if self.without_bos else self.tokenizer.bos,
            "eos": self.tokenizer.eos,
            "special_tokens_in_text": False,
        }
        split = {"rule": "val_source"} if val else by_hash
        return new_manifest(self.tokenizer, rows, policy, split, entries) | {
            "sources": {
                "source": [file.path.name for file in train],
                "val_source": [file.path.name for file in val] or None,
                "formats": sorted({file.format for file in train + val}),
            },
            "order": "as in the files",
            "val_bytes": self.val_bytes,
            "documents": writers["train"].documents,
            "val_documents": writers["val"].documents,
            "overlap": overlap,
        }

    def _copy(
        self,
        file: FlatFile,
        is_val: bool,
        writers: dict[str, ShardWriter],
        hashes: dict[str, DocumentHashes],
    ) -> None:
        for begin, end in file.documents(self.tokenizer.eos):
            content, splitting = hashlib.sha256(), hashlib.sha256(f"{SPLIT_RULE}:".encode())
            for piece in _pieces(file, begin, end):
                content.update(piece.astype("<u4").data)
                splitting.update(piece.astype("<u4").data)
            by_hash = not self.files.val and (
                _first_bits(splitting.digest()) < self.files.val_fraction * 2**64
            )
            split = "val" if is_val or by_hash else "train"
            hashes[split].add(_first_bits(content.digest()))
            for number, piece in enumerate(_pieces(file, begin, end)):
                writers[split].add(piece, begins=number == 0)
                if split == "val":
                    self.val_bytes += len(self.tokenizer.decode(piece.tolist()).encode())
                self._move(len(piece))
            if int(file.ids[end - 1]) != self.tokenizer.eos:
                writers[split].add(np.array([self.tokenizer.eos]), begins=False)
            self.without_bos += int(file.ids[begin]) != self.tokenizer.bos

    def _move(self, ids: int) -> None:
        if self.stop():
            raise Interrupted("importing tokens was interrupted.", "Run the same command again.")
        self.done += ids
        if self.done // _PIECE != (self.done - ids) // _PIECE or self.done == self.total:
            self.on_progress(Progress(_TASK, self.done, self.total, "tokens"))

    def _check(self, writers: dict[str, ShardWriter]) -> None:
        if writers["train"].num_ids < 2:
            raise DataError("the files hold no training tokens.", "Give files that do.")
        if writers["val"].num_ids < 2:
            raise DataError(
                f"of {writers['train'].documents} documents none was held out.",
                "Give --val-from-bin FILE, or raise --val-fraction.",
            )
        if self.without_bos and self.tokenizer.bos is not None:
            said = f"{self.without_bos:,} documents lack the BOS that this tokenizer puts"
            self.on_progress(Progress(_TASK, message=said))

    def _overlap(
        self, val: TokenStream, train: TokenStream, hashes: dict[str, DocumentHashes]
    ) -> dict[str, Any]:
        of_val = np.concatenate([np.empty(0, dtype=np.uint64), *hashes["val"].chunks()])

        def watch(done: int) -> None:
            self._move(0)
            train.forget(done)

        return {
            "duplicate_documents": duplicate_share(of_val, hashes["train"].chunks()),
            "repeated_documents": hashes["train"].repeated_share(),
        } | ngram_share(val, train, self.tokenizer.eos, watch)


def _pieces(file: FlatFile, begin: int, end: int) -> Iterator[NDArray[Any]]:
    for start in range(begin, end, _PIECE):
        yield file.ids[start : min(start + _PIECE, end)]


def _first_bits(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
