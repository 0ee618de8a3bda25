"""Encode the documents of every source, in order, into the shards of both splits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from inheritune.data.document import Document, held_out, sampled
from inheritune.data.encoding import Encoded, Encoders
from inheritune.data.hub_dataset import dataset_commit
from inheritune.data.input_files import some, spell
from inheritune.data.journal import Journal
from inheritune.data.overlap import DocumentHashes
from inheritune.data.sources import Mixture, Source, SourcePosition, held_out_sources, open_sources
from inheritune.data.token_manifest import PreparedText
from inheritune.data.token_writer import TokenWriter
from inheritune.data.tokenizer import TextTokenizer
from inheritune.errors import Interrupted
from inheritune.recipe.data import Data
from inheritune.system.progress import Listener, Progress

_TASK = "preparing tokens"


class TokenBuilder:
    """Builds one token directory, or goes on with one that a killed process left.

    Arguments are those of `prepare_text`, but for two.

    Args:
        request: JSON values that decide the tokens; the journal of another request is cleared.
        journal: Holds the shards, and what an earlier process left.
        share: Which of how many parts of the text.
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
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._data, self._seq_len = data, seq_len
        self._journal, self._on_progress, self._stop = journal, on_progress, stop
        self._writer = TokenWriter(journal.shards, journal.directory, tokenizer, rows, shard_ids)

        # --- the state between two documents: of the journal, or new ---
        # Validation sources come first, in this list and in all lists of the state.
        val_sources = held_out_sources(data, tokenizer.directory)
        train_sources = open_sources(data, tokenizer.directory)
        sources = val_sources + train_sources
        state = journal.read(request, self._writer)
        if state is None:
            journal.clear()
            state = {
                "request": request,
                "commits": [dataset_commit(s.part) if s.is_remote else None for s in sources],
                "places": [None] * len(sources),
                "tokens": [0] * len(sources),
                "taken": [0] * len(sources),  # documents of both splits
                "text_bytes": [0] * len(sources),
                "read_bytes": [0] * len(sources),
                "documents": 0,
                "val_bytes": 0,
            }
        else:
            shards, documents = self._writer.num_shards, state["documents"]
            self._say(f"{shards} shards are there, going on after {documents:,} documents")
        self._state = state

        # --- the sources, at the commits that the first process saw ---
        sources = [
            replace(source, commit=commit, share=share)
            for source, commit in zip(sources, state["commits"], strict=True)
        ]
        self._first = len(val_sources)
        self._val_sources, self._sources = sources[: self._first], sources[self._first :]
        self._text = PreparedText(
            data, tokenizer, sources, self._first, self._writer, state, on_progress, stop
        )
        self._total_bytes = 0 if data.tokens else sum(s.total_bytes for s in sources)

    def build(self, encoders: Encoders) -> dict[str, Any]:
        """Write all shards, and return the manifest without the request."""
        for row in self._text.taken():
            if count := row["left_out_files"]:
                files = f"{sum(row['files'].values()):,} files of {spell(row['source'])}"
                self._say(f"{files} are read, {count:,} left out: {some(row['left_out'], count)}")
        self._write(encoders)
        return self._text.manifest(self._seq_len)

    def build_part(self, encoders: Encoders) -> dict[str, Any]:
        """Write all shards of a part, and return what `token_parts` needs to join it to others."""
        self._write(encoders)
        for split, hashes in self._writer.hashes.items():
            kept = self._journal.shards / f"hashes-{split}"
            kept.unlink(missing_ok=True)  # of a process that was killed right here
            copy = DocumentHashes(kept)
            copy.take(hashes)
            copy.flush()
        splits = {split: shards.state()[0] for split, shards in self._writer.splits.items()}
        return {"state": self._state, "splits": splits}

    def _write(self, encoders: Encoders) -> None:
        writer, num_shards = self._writer, 0
        for number, encoded in self._encoded(encoders):
            self._add(number, encoded)
            if num_shards != (num_shards := writer.num_shards):
                self._journal.write(self._state, writer)
        writer.close()
        self._report(is_done=True)

    # --- the stream of documents ---

    def _encoded(self, encoders: Encoders) -> Iterator[tuple[int, Encoded]]:
        """Yield encoded documents with the number of their source, in the order of the shards."""
        data = self._data
        for number, source in enumerate(self._val_sources):
            documents = self._filtered(number, source, lambda d: sampled(d, data.val_sample))
            for encoded in encoders.encode(documents, is_val=True, between=self._check):
                yield number, encoded
        yield from self._training_documents(encoders)
        # One source on this machine is read to its end, so that the validation set does not
        # depend on how much is trained on.
        is_single = len(self._sources) == 1 and not self._sources[0].is_remote
        if is_single and data.val_source is None:
            rest = self._filtered(
                self._first,
                self._sources[0],
                lambda d: held_out(d, data) and sampled(d, data.sample),
            )
            for encoded in encoders.encode(rest, is_val=True, between=self._check):
                yield self._first, encoded

    def _training_documents(self, encoders: Encoders) -> Iterator[tuple[int, Encoded]]:
        limit = self._data.tokens
        weights = [source.part.weight for source in self._sources]
        mixture = Mixture(weights)
        streams = [
            encoders.encode(
                source.read(self._state["places"][self._first + i]),
                share=weights[i] / sum(weights),
                between=self._check,
            )
            for i, source in enumerate(self._sources)
        ]
        # One id more than asked for: the last one is only a target.
        while limit is None or self._writer.train.num_ids <= limit:
            i = mixture.next_source(self._state["tokens"][self._first :])
            encoded = next(streams[i], None)
            if encoded is None:
                if len(streams) > 1:
                    self._say(f"{self._sources[i].part.source} has run out, which ends the mixture")
                return
            yield self._first + i, encoded

    def _filtered(
        self, number: int, source: Source, accepts: Callable[[Document], bool]
    ) -> Iterator[tuple[SourcePosition, Document]]:
        documents = source.read(self._state["places"][number])
        for count, (place, document) in enumerate(documents):
            if count % 1024 == 0:  # accepted ones may be few and far between
                self._check()
            if accepts(document):
                yield place, document

    def _add(self, number: int, encoded: Encoded) -> None:
        self._writer.add("val" if encoded.is_val else "train", encoded.ids, encoded.text_hash)
        state = self._state
        state["val_bytes"] += encoded.text_bytes * encoded.is_val
        state["tokens"][number] += 0 if encoded.is_val else len(encoded.ids)
        state["taken"][number] += 1
        state["text_bytes"][number] += encoded.text_bytes
        state["places"][number] = encoded.place.position
        state["read_bytes"][number] = encoded.place.bytes
        state["documents"] += encoded.documents

    # --- progress ---

    def _say(self, message: str) -> None:
        self._on_progress(Progress(_TASK, message=message))

    def _check(self) -> None:
        if self._stop():
            raise Interrupted("preparing tokens was interrupted.", "Run the same command again.")
        self._report()

    def _report(self, is_done: bool = False) -> None:
        tokens = self._writer.train.num_ids
        facts = {"documents": f"{self._state['documents']:,}", "tokens": f"{tokens:,}"}
        done, total, unit = sum(self._state["read_bytes"]), self._total_bytes, "bytes"
        if self._data.tokens is not None:
            done, total, unit = tokens, self._data.tokens, "tokens"
        done = total if is_done else min(done, total)
        self._on_progress(Progress(_TASK, done, total, unit, facts))
