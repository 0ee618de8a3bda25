"""Copy the ids that another program wrote into a token directory like any other."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.document import SPLIT_RULE
from inheritune.data.flat_files import FlatFile, open_flat_file
from inheritune.data.journal import Journal, make_token_directory
from inheritune.data.shards import SHARD_IDS
from inheritune.data.token_writer import TokenWriter
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenDirectory, open_tokens
from inheritune.errors import DataError, Interrupted
from inheritune.system.progress import Listener, Progress, silent

IMPORTED = "imported"  # key of a request that did not come from a recipe
_MANY = 1_000_000  # ids of which some must be EOS
_PIECE = 1 << 20  # ids copied at a time
_TASK = "importing tokens"


@dataclass(frozen=True)
class FlatFiles:
    """Files of token ids to import."""

    train: list[Path]
    val: list[Path]  # a validation set of its own; empty: training documents are held out
    val_fraction: float = 0.002  # share of documents held out, by a hash of their ids
    width: int | None = None  # bytes of an id; None: what the files say, or what their ids allow


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

    Documents end where the index of a file says, or else at EOS; one that lacks its EOS
    is given it. No id is changed.

    Args:
        tokenizer: The tokenizer that made the ids; nothing in the files can prove that.
        embedding_rows: Rows of the model's embedding.
        out: The token directory.
        stop: Stop flag, read between pieces of a document.
        shard_ids: Ids in a full shard.

    Raises:
        DataError: A file is broken, or holds too little, or ``out`` holds something else.
        Interrupted: ``stop`` returned true; nothing is left behind.
        MachineError: The disk is full, or another process fills ``out``.
    """
    rows = min(embedding_rows, tokenizer.rows)
    train = [open_flat_file(path, rows, files.width) for path in files.train]
    val = [open_flat_file(path, rows, files.width) for path in files.val]
    _check_together(files, train + val, tokenizer.eos)
    sizes = [[[f.path.name, f.path.stat().st_size, f.width] for f in s] for s in (train, val)]
    request = {
        IMPORTED: [*sizes, files.val_fraction],
        "the tokenizer": [tokenizer.sha256, tokenizer.bos, tokenizer.eos],
        "embedding rows": embedding_rows,
        "ids in a shard": shard_ids,
    }

    def build(journal: Journal) -> dict[str, Any]:
        journal.clear()
        writer = TokenWriter(
            journal.shards, journal.directory, tokenizer, embedding_rows, shard_ids
        )
        total = sum(len(file.ids) for file in train + val)
        copy = _Copy(files, tokenizer, writer, total, on_progress, stop)
        return copy.run(train, val) | {"request": request}

    make_token_directory(out, build)
    tokens = open_tokens(out)
    if tokens.manifest["request"] != request:
        raise DataError(
            f"{out} holds other tokens.", "Delete that directory, or choose another one."
        )
    return tokens


@dataclass
class _Copy:
    """One import, under way: files are copied into a writer."""

    files: FlatFiles
    tokenizer: TextTokenizer
    writer: TokenWriter
    total: int  # ids in all files
    on_progress: Listener
    stop: Callable[[], bool]
    val_bytes: int = 0
    done: int = 0  # ids copied
    without_bos: int = 0  # documents

    def run(self, train: list[FlatFile], val: list[FlatFile]) -> dict[str, Any]:
        """Write all shards, and return the manifest without the request."""
        for file in val:
            self._copy(file, is_val=True)
        for file in train:
            self._copy(file, is_val=False)
        self.writer.close()
        self._check()
        overlap = self.writer.document_overlap() | self.writer.ngram_overlap(
            lambda done: self._advance(0)
        )
        by_hash = {"rule": SPLIT_RULE, "by": "ids", "val_fraction": self.files.val_fraction}
        return self.writer.manifest(
            bos=None if self.without_bos else self.tokenizer.bos,
            special_tokens_in_text=False,
            split={"rule": "val_source"} if val else by_hash,
            sources={
                "source": [file.path.name for file in train],
                "val_source": [file.path.name for file in val] or None,
                "formats": sorted({file.format for file in train + val}),
            },
            order="as in the files",
            val_bytes=self.val_bytes,
            overlap=overlap,
            taken={"sources": self._taken(train, val), "first_words": self.writer.first_words()},
        )

    def _taken(self, train: list[FlatFile], val: list[FlatFile]) -> list[dict[str, Any]]:
        documents = self.writer.train.documents + self.writer.val.documents
        formats = Counter(file.format for file in train + val)
        names = [file.path.name for file in train + val]
        return [{"source": names, "files": formats, "documents": documents, "bytes": None}]

    def _copy(self, file: FlatFile, is_val: bool) -> None:
        eos = self.tokenizer.eos
        for begin, end in file.documents(eos):
            # --- one pass for the hashes, since a document may be larger than memory ---
            content, splitting = hashlib.sha256(), hashlib.sha256(f"{SPLIT_RULE}:".encode())
            for piece in _pieces(file, begin, end):
                content.update(piece.astype("<u4").data)
                splitting.update(piece.astype("<u4").data)
            by_hash = not self.files.val and (
                _first_bits(splitting.digest()) < self.files.val_fraction * 2**64
            )
            split = "val" if is_val or by_hash else "train"

            # --- and one for the ids ---
            shards = self.writer.splits[split]
            self.writer.hashes[split].add(_first_bits(content.digest()))
            for number, piece in enumerate(_pieces(file, begin, end)):
                shards.add(piece, begins=number == 0)
                if split == "val":
                    self.val_bytes += len(self.tokenizer.decode(piece.tolist()).encode())
                self._advance(len(piece))
            if int(file.ids[end - 1]) != eos:
                shards.add(np.array([eos]), begins=False)
            self.without_bos += int(file.ids[begin]) != self.tokenizer.bos

    def _advance(self, ids: int) -> None:
        if self.stop():
            raise Interrupted("importing tokens was interrupted.", "Run the same command again.")
        before, self.done = self.done, self.done + ids
        if self.done // _PIECE != before // _PIECE or self.done == self.total:
            self.on_progress(Progress(_TASK, self.done, self.total, "tokens"))

    def _check(self) -> None:
        if self.writer.train.num_ids < 2:
            raise DataError("the files hold no training tokens.", "Give files that do.")
        if self.writer.val.num_ids < 2:
            raise DataError(
                f"of {self.writer.train.documents} documents none was held out; "
                f"they end at EOS, id {self.tokenizer.eos}.",
                "Give --val-from-bin FILE, or raise --val-fraction.",
            )
        if self.without_bos and self.tokenizer.bos is not None:
            note = f"{self.without_bos:,} documents lack the BOS that this tokenizer puts"
            self.on_progress(Progress(_TASK, message=note))


def _check_together(files: FlatFiles, opened: list[FlatFile], eos: int) -> None:
    """Refuse what nothing proves to be ids of this tokenizer.

    Raises:
        DataError: Two flat files have ids of different widths, or one has next to no EOS.
    """
    flat = [file for file in opened if file.format == "flat"]
    if len({file.width for file in flat}) > 1:
        named = ", ".join(f"{file.path} has {file.width}" for file in flat)
        raise DataError(f"bytes of an id differ: {named}.", "Say their --dtype.")
    for file in flat if files.width is None else []:
        if len(file.ids) >= _MANY and (ends := file.count(eos)) < 2:
            raise DataError(
                f"{file.path} holds EOS, id {eos}, {ends} times in {len(file.ids):,} ids.",
                "Name the tokenizer that made it; if it is one long document, say its --dtype.",
            )


def _pieces(file: FlatFile, begin: int, end: int) -> Iterator[NDArray[Any]]:
    for start in range(begin, end, _PIECE):
        yield file.ids[start : min(start + _PIECE, end)]


def _first_bits(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
