"""Describe prepared tokens in their manifest: what they were made of, how the splits overlap."""

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inheritune.data.chat_template import DATE
from inheritune.data.document import SPLIT_RULE
from inheritune.data.input_files import STDLIB, left_out
from inheritune.data.sources import Source
from inheritune.data.text_formats import format_of
from inheritune.data.token_writer import TokenWriter
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import check_length
from inheritune.errors import DataError, Interrupted, escape
from inheritune.recipe.data import Data
from inheritune.system.progress import Listener, Progress

_MAX_VAL_DUPLICATES = 0.01  # share of a validation set of the user's own that may be trained on
_MANY_REPEATS = 0.1  # share of repeated training documents that is worth a message
_MOST_NAMES = 20  # of files that were left out, in the manifest


@dataclass(frozen=True)
class PreparedText:
    """A text and the shards that are made of it."""

    data: Data
    tokenizer: TextTokenizer
    sources: list[Source]  # those of the validation set first...
    num_val_sources: int  # ...of which there are so many
    writer: TokenWriter
    state: dict[str, Any]  # of `TokenBuilder`, whose lists have an entry for each source
    on_progress: Listener
    stop: Callable[[], bool]

    def manifest(self, seq_len: int) -> dict[str, Any]:
        """Return the manifest without the request, once all shards are written.

        Args:
            seq_len: Tokens per sequence, of which each split must hold one.

        Raises:
            DataError: There are too few tokens, or the validation set is also trained on.
            Interrupted: ``stop`` returned true.
        """
        data, writer = self.data, self.writer
        check_length(writer.train.num_ids, writer.val.num_ids, seq_len, data)
        is_rendered = any(source.column.render is not None for source in self.sources)
        by_hash = {"rule": SPLIT_RULE, "by": data.split_by, "val_fraction": data.val_fraction}
        return writer.manifest(
            bos=self.tokenizer.bos,
            special_tokens_in_text=data.special_tokens_in_text or is_rendered,
            split=by_hash if data.val_source is None else {"rule": "val_source"},
            sources=self._provenance(),
            order="source order; training documents end once data.tokens is exceeded",
            val_bytes=self.state["val_bytes"],
            overlap=self._overlap(),
            taken={"sources": self.taken(), "first_words": writer.first_words()},
            **({"chat_template_date": f"{DATE:%Y-%m-%d}"} if is_rendered else {}),
        )

    def taken(self) -> list[dict[str, Any]]:
        """Describe what was taken of each source, and what was left out of its folders."""
        rows = []
        for number, source in enumerate(self.sources):
            names = [] if source.is_remote else left_out(source.part.source, source.files)
            rows.append(
                {
                    "source": source.part.source,
                    "files": Counter(format_of(file.read_as).name for file in source.files),
                    "left_out_files": len(names),
                    "left_out": [escape(name, 200) for name in names[:_MOST_NAMES]],
                    "documents": self.state["taken"][number],
                    "bytes": self.state["text_bytes"][number],
                }
            )
        return rows

    def _overlap(self) -> dict[str, Any]:
        overlap = self.writer.document_overlap()
        duplicates, repeated = overlap["duplicate_documents"], overlap["repeated_documents"]
        if self.data.val_source is not None and duplicates > _MAX_VAL_DUPLICATES:
            raise DataError(
                f"{duplicates:.1%} of the documents of data.val_source are also in data.source.",
                f"Take them out of either; up to {_MAX_VAL_DUPLICATES:.0%} is accepted.",
            )
        if repeated > _MANY_REPEATS:
            message = f"{repeated:.0%} of the training documents repeat another one exactly"
            self.on_progress(Progress("preparing tokens", message=message))
        num_ids = self.writer.train.num_ids

        def report(done: int) -> None:
            if self.stop():
                raise Interrupted(
                    "measuring the overlap was interrupted.", "Run the same command again."
                )
            self.on_progress(Progress("measuring overlap", done, num_ids, "tokens"))

        return overlap | self.writer.ngram_overlap(report)

    def _provenance(self) -> dict[str, Any]:
        data = self.data
        provenance = data.model_dump(mode="json", include={"source", "val_source"})
        provenance["python"] = platform.python_version() if data.source in STDLIB else None
        if any(self.state["commits"]):
            provenance["commits"] = self.state["commits"]
        training_tokens = self.state["tokens"][self.num_val_sources :]
        if len(training_tokens) > 1:
            provenance["training_tokens"] = training_tokens
        shares = data.model_dump(mode="json", include={"sample", "val_sample"})
        return provenance | {key: share for key, share in shares.items() if share is not None}
