"""Text to token shards: split by hash, encode, write, measure the overlap, publish at once."""

import hashlib
import platform
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.data.overlap import duplicate_share, ngram_share
from inheritune.data.shards import SHARD_IDS, SHARD_VERSION, ShardWriter
from inheritune.data.sources import STDLIB, Document, documents, input_files
from inheritune.data.staging import is_prepared, publish, staging_directory
from inheritune.data.tokenizer import TextTokenizer, encode_documents
from inheritune.data.tokens import (
    MANIFEST_FORMAT,
    TokenDirectory,
    TokenStream,
    canonical_digest,
    fingerprint,
    open_tokens,
)
from inheritune.errors import DataError, Interrupted
from inheritune.progress import Listener, Progress, silent
from inheritune.recipe import Data

__all__ = ["SPLIT_RULE", "held_out", "prepare", "training_texts"]

SPLIT_RULE = "inheritune-split-1"
MAX_VAL_DUPLICATES = 0.01  # share of a validation set of the user's own that may be trained on
_TEXT = "the text itself"
_BATCH_CHARACTERS = 1 << 20  # enough to keep all cores encoding


def held_out(document: Document, data: Data) -> bool:
    """Whether a document belongs to the validation set; depends on nothing but itself.

    Args:
        document: Its text is hashed, or its name, as ``data.split_by`` says.
        data: With a ``val_source`` of its own nothing is held out.
    """
    if data.val_source is not None or document.train_only:
        return False
    key = document.text if data.split_by == "text" else document.name
    digest = hashlib.sha256(f"{SPLIT_RULE}:{key}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") < data.val_fraction * 2**64


def training_texts(data: Data) -> Iterator[str]:
    """Texts of the documents that are not held out, in source order."""
    for document in documents(data.source, data.text_column, data.max_bad_rows):
        if not held_out(document, data):
            yield document.text


def prepare(
    data: Data,
    tokenizer: TextTokenizer,
    embedding_rows: int,
    seq_len: int,
    out: Path,
    on_progress: Listener = silent,
    should_stop: Callable[[], bool] = lambda: False,
    shard_ids: int = SHARD_IDS,
) -> TokenDirectory:
    """Turn text into token shards, or open them where they are already there.

    Documents are joined as ``[BOS] ids EOS`` in source order. The directory appears complete,
    by one rename, or not at all; the same input gives the same bytes.

    Args:
        data: The recipe's section.
        tokenizer: Its ids must all have a row.
        embedding_rows: Rows of the model's embedding; decides the width of an id.
        seq_len: Tokens per sequence; there must be one sequence at least in either split.
        out: The token directory.
        on_progress: Told of documents read, then of tokens compared.
        should_stop: Asked before every batch.
        shard_ids: Ids in a full shard; decides memory: 2 or 4 bytes each.

    Raises:
        DataError: The text is missing, broken or too short, or ``out`` holds something else.
        Interrupted: ``should_stop`` said so; nothing is left behind.
        MachineError: The disk is full, or another process prepares the same tokens.
    """
    if tokenizer.rows > embedding_rows:
        raise DataError(
            f"the tokenizer in {tokenizer.directory} has ids up to {tokenizer.rows - 1}, the "
            f"embedding has {embedding_rows} rows.",
            "Use the tokenizer that belongs to the model.",
        )
    request = _request(data, tokenizer, embedding_rows, shard_ids)
    if not is_prepared(out):
        with staging_directory(out) as staging:
            if not is_prepared(out):  # another process may have finished it just now
                knobs = (data, tokenizer, embedding_rows, seq_len)
                manifest = _Job(*knobs, staging, on_progress, should_stop).run(shard_ids)
                publish(staging, manifest | {"request": request}, out)
    tokens = open_tokens(out)
    _check_fits(tokens, request)
    _check_length(tokens.train.num_ids, tokens.val.num_ids, seq_len, data)
    return tokens


@dataclass
class _Job:
    """One preparation: the streams, and what is counted on the way."""

    data: Data
    tokenizer: TextTokenizer
    rows: int
    seq_len: int
    directory: Path
    on_progress: Listener
    should_stop: Callable[[], bool]
    # Eight bytes for each document; everything else that is held has a fixed size.
    hashes: dict[bool, "array[int]"] = field(
        default_factory=lambda: {False: array("Q"), True: array("Q")}
    )
    val_bytes: int = 0

    def run(self, shard_ids: int) -> dict[str, Any]:
        """Write all shards; the manifest, except for the request."""
        train = ShardWriter(self.directory, "train", self.rows, shard_ids)
        val = ShardWriter(self.directory, "val", self.rows, shard_ids)
        done = 0
        for batch in _batches(self._documents(train)):
            self._stop_if_asked()
            texts = [text for _, text in batch]
            encoded = encode_documents(self.tokenizer, texts, self.data.special_tokens_in_text)
            for (is_val, text), ids in zip(batch, encoded, strict=True):
                if is_val or not self._has_enough(train):
                    self._count(is_val, text)
                    (val if is_val else train).add(ids)
            done += len(batch)
            self.on_progress(Progress("preparing tokens", done, 0, "documents"))
        entries = train.close() + val.close()
        _check_length(train.num_ids, val.num_ids, self.seq_len, self.data)
        overlap = self._overlap(
            TokenStream(self.directory, train.entries, self.rows),
            TokenStream(self.directory, val.entries, self.rows),
        )
        return self._manifest([entry.as_json() for entry in entries]) | {
            "documents": train.documents,
            "val_documents": val.documents,
            "overlap": overlap,
        }

    def _documents(self, train: ShardWriter) -> Iterator[tuple[bool, str]]:
        """Documents to write, as (held out, text): training ones until there are enough."""
        data = self.data
        own = documents(data.source, data.text_column, data.max_bad_rows)
        brought: Iterator[Document] = iter(())
        if data.val_source is not None:
            brought = documents(data.val_source, data.text_column, data.max_bad_rows)
        marked = chain(
            ((True, document.text) for document in brought),
            ((held_out(document, data), document.text) for document in own),
        )
        for is_val, text in marked:
            if is_val or not self._has_enough(train):
                yield is_val, text
            elif data.val_source is not None:
                return

    def _has_enough(self, train: ShardWriter) -> bool:
        # One id more than asked for: the last one is only a target.
        return self.data.tokens is not None and train.num_ids > self.data.tokens

    def _count(self, is_val: bool, text: str) -> None:
        content = text.encode()
        digest = hashlib.sha256(content).digest()
        self.hashes[is_val].append(int.from_bytes(digest[:8], "little"))
        self.val_bytes += len(content) * is_val

    def _overlap(self, train: TokenStream, val: TokenStream) -> dict[str, Any]:
        train_hashes = np.frombuffer(self.hashes[False], dtype=np.uint64)
        val_hashes = np.frombuffer(self.hashes[True], dtype=np.uint64)
        duplicates = duplicate_share(val_hashes, train_hashes)
        if self.data.val_source is not None and duplicates > MAX_VAL_DUPLICATES:
            raise DataError(
                f"{duplicates:.1%} of the documents of data.val_source are also in data.source.",
                f"Take them out of either; up to {MAX_VAL_DUPLICATES:.0%} is accepted.",
            )
        repeated = 1 - len(np.unique(train_hashes)) / len(train_hashes)
        if repeated > 0.1:
            message = f"{repeated:.0%} of the training documents repeat another one exactly"
            self.on_progress(Progress("preparing tokens", message=message))

        def watch(done: int) -> None:
            self._stop_if_asked()
            self.on_progress(Progress("measuring overlap", done, train.num_ids, "tokens"))

        shared = ngram_share(val, train, self.tokenizer.eos, watch)
        return {"duplicate_documents": duplicates, "repeated_documents": repeated} | shared

    def _stop_if_asked(self) -> None:
        if self.should_stop():
            raise Interrupted("preparing tokens was interrupted.", "Run the same command again.")

    def _manifest(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        data, tokenizer = self.data, self.tokenizer
        identity = {"sha256": tokenizer.sha256, "rows": tokenizer.rows}
        policy = {
            "bos": tokenizer.bos,
            "eos": tokenizer.eos,
            "special_tokens_in_text": data.special_tokens_in_text,
        }
        by_hash = {"rule": SPLIT_RULE, "by": data.split_by, "val_fraction": data.val_fraction}
        content = {
            "format": MANIFEST_FORMAT,
            "shard_version": SHARD_VERSION,
            "tokenizer": identity,
            "embedding_rows": self.rows,
            "policy": policy,
            "split": by_hash if data.val_source is None else {"rule": "val_source"},
            "files": files,
        }
        held = [entry for entry in files if entry["name"].startswith("val-")]
        return content | {
            "fingerprint": fingerprint(content),
            "val_fingerprint": canonical_digest([identity, policy, held]),
            "sources": {
                "source": data.source,
                "val_source": data.val_source,
                "python": platform.python_version() if data.source in STDLIB else None,
            },
            "order": "source order; training documents end once data.tokens is exceeded",
            "val_bytes": self.val_bytes,
        }


def _batches(marked: Iterator[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Documents in groups that are worth encoding in parallel."""
    batch: list[tuple[bool, str]] = []
    characters = 0
    for item in marked:
        batch.append(item)
        characters += len(item[1])
        if characters >= _BATCH_CHARACTERS or len(batch) == 1024:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _request(
    data: Data, tokenizer: TextTokenizer, embedding_rows: int, shard_ids: int
) -> dict[str, Any]:
    """Everything that was asked for, so that finished tokens can be told to fit."""
    asked = data.model_dump(mode="json", exclude={"allow_repeat"})
    return {f"data.{key}": value for key, value in asked.items()} | {
        "the tokenizer": [tokenizer.sha256, tokenizer.bos, tokenizer.eos],
        "embedding rows": embedding_rows,
        "ids in a shard": shard_ids,
        _TEXT: _listing(data),
    }


def _listing(data: Data) -> str | None:
    """Digest of the names and sizes of the input files; None where that says nothing.

    A run that is copied elsewhere goes on with its tokens: there, the library of another Python
    or the absence of the files is no sign that they are out of date.
    """
    given = [s for s in (data.source, data.val_source) if s is not None and s not in STDLIB]
    try:
        files = [file for source in given for file in input_files(source)]
        sizes = [[file.name, file.path.stat().st_size] for file in files]
    except (DataError, OSError):
        return None
    return canonical_digest(sizes) if sizes else None


def _check_fits(tokens: TokenDirectory, request: dict[str, Any]) -> None:
    before = tokens.manifest["request"]
    changed = [key for key, value in request.items() if before.get(key) != value]
    if None in (request[_TEXT], before.get(_TEXT)):
        changed = [key for key in changed if key != _TEXT]
    if changed:
        raise DataError(
            f"the tokens in {tokens.path} were prepared otherwise: {', '.join(changed)} changed.",
            "Delete that directory to prepare them again, or choose another run.",
        )


def _check_length(train: int, val: int, seq_len: int, data: Data) -> None:
    for name, found in (("training", train), ("validation", val)):
        if found < seq_len + 1:
            by_hash = name == "validation" and data.val_source is None
            first = "Raise data.val_fraction, add text" if by_hash else "Add text"
            raise DataError(
                f"the {name} text has {found} tokens, one sequence needs {seq_len + 1} "
                f"(train.seq_len {seq_len} + 1).",
                f"{first}, or lower train.seq_len.",
            )
