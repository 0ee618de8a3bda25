"""One preparation: documents of every source, encoded, into the shards of both splits.

Which of several sources gives the next document, so that each gets its share of the tokens.
"""

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from inheritune.data.document import (
    SPLIT_RULE,
    Document,
    held_out,
    sampled,
    val_sampled,
)
from inheritune.data.encoding import Encoded, Encoders
from inheritune.data.hub_dataset import dataset_commit
from inheritune.data.input_files import STDLIB
from inheritune.data.manifest import new_manifest
from inheritune.data.overlap import duplicate_share, ngram_share
from inheritune.data.shards import ShardEntry, ShardWriter
from inheritune.data.sources import Place, Source, held_out_sources, open_sources
from inheritune.data.staging import Journal
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenStream, check_length
from inheritune.errors import DataError, Interrupted
from inheritune.recipe.schema import Data
from inheritune.system.progress import Listener, Progress

__all__ = ["Mixture", "Preparation"]


class Mixture:
    """Shares of several sources.

    The next document comes from the source that is furthest behind its share. That depends on the
    tokens taken so far and on nothing else, so that the order is the same on every machine; and
    after every document no source is ahead of its share by more than its longest document.

    Args:
        weights: Above 0, one for each source; only their ratios count.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(repr(weight)) for weight in weights]  # 4.5, not the float beside it
        shared = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * shared) for weight in exact]
        multiple = math.lcm(*whole)
        self._factors = [multiple // weight for weight in whole]

    def next_source(self, taken: Sequence[int]) -> int:
        """Index of the source that gives the next document; of equals, the first.

        Args:
            taken: Training tokens that each source has given so far.
        """
        behind = [tokens * factor for tokens, factor in zip(taken, self._factors, strict=True)]
        return behind.index(min(behind))


MAX_VAL_DUPLICATES = 0.01  # share of a validation set of the user's own that may be trained on
_TASK = "preparing tokens"


class Preparation:
    """Prepares one token directory, or goes on with it.

    Args:
        data: The recipe's section.
        tokenizer: Text to ids.
        rows: Rows of the model's embedding.
        seq_len: Tokens per sequence.
        shard_ids: Ids in a full shard.
        request: What identifies all of this.
        journal: Where it is written, and what an earlier process left.
        on_progress: Told how far it is.
        stop: Asked before every batch.
    """

    def __init__(
        self,
        data: Data,
        tokenizer: TextTokenizer,
        rows: int,
        seq_len: int,
        shard_ids: int,
        request: dict[str, Any],
        journal: Journal,
        on_progress: Listener,
        stop: Callable[[], bool],
    ) -> None:
        self._data, self._tokenizer, self._rows, self._seq_len = data, tokenizer, rows, seq_len
        self._journal, self._on_progress, self._stop = journal, on_progress, stop
        self._train = ShardWriter(journal.shards, "train", rows, shard_ids)
        self._val = ShardWriter(journal.shards, "val", rows, shard_ids)
        self._writers = {"train": self._train, "val": self._val}
        self._hashes = {split: journal.hashes(split) for split in self._writers}
        self._brought, self._own = held_out_sources(data), open_sources(data)
        state = journal.read(request, self._writers, self._hashes)
        if state is None:
            journal.clear()
            count = len(self._brought) + len(self._own)
            state = {
                "request": request,
                "commits": [dataset_commit(s.part) if s.is_remote else None for s in self._all],
                "places": [None] * count,
                "tokens": [0] * count,
                "read_bytes": [0] * count,
                "documents": 0,
                "val_bytes": 0,
            }
        else:
            done = sum(len(writer.entries) for writer in self._writers.values())
            self._say(f"{done} shards are there, going on after {state['documents']:,} documents")
        self._state = state
        commits = state["commits"]
        opened = [replace(s, commit=c) for s, c in zip(self._all, commits, strict=True)]
        self._brought, self._own = opened[: len(self._brought)], opened[len(self._brought) :]
        self._total_bytes = 0 if data.tokens else sum(s.total_bytes for s in opened)

    @property
    def _all(self) -> list[Source]:
        return self._brought + self._own

    def run(self, encoders: Encoders) -> dict[str, Any]:
        """Write all shards; the manifest, except for the request."""
        finished = self._finished
        for number, encoded in self._encoded(encoders):
            self._add(number, encoded)
            if self._finished != finished:
                finished = self._finished
                self._journal.write(self._state, self._writers, self._hashes)
        entries = self._train.close() + self._val.close()
        self._report(ended=True)
        check_length(self._train.num_ids, self._val.num_ids, self._seq_len, self._data)
        shards = self._journal.shards
        overlap = self._overlap(
            TokenStream(shards, self._train.entries, self._rows),
            TokenStream(shards, self._val.entries, self._rows),
        )
        return self._manifest(entries) | {
            "documents": self._train.documents,
            "val_documents": self._val.documents,
            "overlap": overlap,
        }

    @property
    def _finished(self) -> int:
        return len(self._train.entries) + len(self._val.entries)

    # --- The stream of documents ---------------------------------------------------------------

    def _encoded(self, encoders: Encoders) -> Iterator[tuple[int, Encoded]]:
        """Encoded documents with the number of their source, in the order of the token stream."""
        for number, source in enumerate(self._brought):
            taken = self._only(val_sampled, self._read(number, source))
            for encoded in encoders.encode(taken, True, 1.0, self._check):
                yield number, encoded
        yield from self._mixed(encoders)
        if not self._ends_with_training:
            number = len(self._brought)
            rest = self._only(_held_out_sample, self._read(number, self._own[0]))
            for encoded in encoders.encode(rest, True, 1.0, self._check):
                yield number, encoded

    @property
    def _ends_with_training(self) -> bool:
        # One source on this machine is read to its end, so that the validation set does not
        # depend on how much is trained on.
        single = len(self._own) == 1 and not self._own[0].is_remote
        return self._data.val_source is not None or not single

    def _mixed(self, encoders: Encoders) -> Iterator[tuple[int, Encoded]]:
        first = len(self._brought)
        weights = [source.part.weight for source in self._own]
        mixture = Mixture(weights)
        streams = [
            encoders.encode(
                self._read(first + i, source), False, weights[i] / sum(weights), self._check
            )
            for i, source in enumerate(self._own)
        ]
        while not self._has_enough:
            i = mixture.next_source(self._state["tokens"][first:])
            encoded = next(streams[i], None)
            if encoded is None:
                if len(streams) > 1:
                    self._say(f"{self._own[i].part.source} has run out, which ends the mixture")
                return
            yield first + i, encoded

    def _read(self, number: int, source: Source) -> Iterator[tuple[Place, Document]]:
        return source.read(self._state["places"][number])

    def _only(
        self,
        is_wanted: Callable[[Document, Data], bool],
        documents: Iterator[tuple[Place, Document]],
    ) -> Iterator[tuple[Place, Document]]:
        for number, (place, document) in enumerate(documents):
            if number % 1024 == 0:  # they may be few and far between
                self._check()
            if is_wanted(document, self._data):
                yield place, document

    @property
    def _has_enough(self) -> bool:
        # One id more than asked for: the last one is only a target.
        return self._data.tokens is not None and self._train.num_ids > self._data.tokens

    def _add(self, number: int, encoded: Encoded) -> None:
        split = "val" if encoded.is_val else "train"
        self._writers[split].add(encoded.ids)
        self._hashes[split].add(encoded.text_hash)
        state = self._state
        state["val_bytes"] += encoded.text_bytes * encoded.is_val
        state["tokens"][number] += 0 if encoded.is_val else len(encoded.ids)
        state["places"][number] = encoded.place.position
        state["read_bytes"][number] = encoded.place.bytes
        state["documents"] += encoded.documents

    # --- Talking ---------------------------------------------------------------------------------

    def _say(self, message: str) -> None:
        self._on_progress(Progress(_TASK, message=message))

    def _check(self) -> None:
        if self._stop():
            raise Interrupted("preparing tokens was interrupted.", "Run the same command again.")
        self._report()

    def _report(self, ended: bool = False) -> None:
        facts = {
            "documents": f"{self._state['documents']:,}",
            "tokens": f"{self._train.num_ids:,}",
        }
        done, total, unit = sum(self._state["read_bytes"]), self._total_bytes, "bytes"
        if self._data.tokens is not None:
            done, total, unit = self._train.num_ids, self._data.tokens, "tokens"
        done = total if ended else min(done, total)
        self._on_progress(Progress(_TASK, done, total, unit, facts))

    # --- What is said about it -------------------------------------------------------------------

    def _overlap(self, train: TokenStream, val: TokenStream) -> dict[str, Any]:
        chunks = [np.empty(0, dtype=np.uint64), *self._hashes["val"].chunks()]
        duplicates = duplicate_share(np.concatenate(chunks), self._hashes["train"].chunks())
        if self._data.val_source is not None and duplicates > MAX_VAL_DUPLICATES:
            raise DataError(
                f"{duplicates:.1%} of the documents of data.val_source are also in data.source.",
                f"Take them out of either; up to {MAX_VAL_DUPLICATES:.0%} is accepted.",
            )
        repeated = self._hashes["train"].repeated_share()
        if repeated > 0.1:
            self._say(f"{repeated:.0%} of the training documents repeat another one exactly")

        def watch(done: int) -> None:
            if self._stop():
                raise Interrupted(
                    "measuring the overlap was interrupted.", "Run the same command again."
                )
            train.forget(done)
            self._on_progress(Progress("measuring overlap", done, train.num_ids, "tokens"))

        shared = ngram_share(val, train, self._tokenizer.eos, watch)
        return {"duplicate_documents": duplicates, "repeated_documents": repeated} | shared

    def _manifest(self, entries: list[ShardEntry]) -> dict[str, Any]:
        data, tokenizer = self._data, self._tokenizer
        policy = {
            "bos": tokenizer.bos,
            "eos": tokenizer.eos,
            "special_tokens_in_text": data.special_tokens_in_text,
        }
        by_hash = {"rule": SPLIT_RULE, "by": data.split_by, "val_fraction": data.val_fraction}
        split = by_hash if data.val_source is None else {"rule": "val_source"}
        return new_manifest(tokenizer, self._rows, policy, split, entries) | {
            "sources": self._provenance(),
            "order": "source order; training documents end once data.tokens is exceeded",
            "val_bytes": self._state["val_bytes"],
        }

    def _provenance(self) -> dict[str, Any]:
        data = self._data
        given = data.model_dump(mode="json", include={"source", "val_source"})
        found = given | {"python": platform.python_version() if data.source in STDLIB else None}
        if any(self._state["commits"]):
            found["commits"] = self._state["commits"]
        if len(self._own) > 1:
            found["training_tokens"] = self._state["tokens"][len(self._brought) :]
        shares = data.model_dump(mode="json", include={"sample", "val_sample"})
        found |= {key: share for key, share in shares.items() if share is not None}
        return found


def _held_out_sample(document: Document, data: Data) -> bool:
    return held_out(document, data) and sampled(document, data)
