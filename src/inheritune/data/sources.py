"""Read documents from local files, the standard library, Hub datasets, or a mixture of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from inheritune.data.bad_rows import BadRows
from inheritune.data.chat_template import chat_renderer
from inheritune.data.document import Document
from inheritune.data.hub_dataset import hub_documents, is_hub_dataset
from inheritune.data.input_files import InputFile, input_files, spell
from inheritune.data.text_column import TextColumn
from inheritune.data.text_files import read_documents
from inheritune.data.text_formats import is_packed, is_web_page, size_of
from inheritune.errors import DataError, RecipeError
from inheritune.recipe.data import Data, TextSource

_MOST_ADDED = 4  # ids around the text of a file that is one document


class SourcePosition(NamedTuple):
    """How far a source was read."""

    position: dict[str, Any]  # JSON values that `Source.read` starts from
    bytes: int  # of its files that were read, approximately


@dataclass(frozen=True)
class Source:
    """One source of documents, always in the same order."""

    part: TextSource  # the recipe's entry
    column: TextColumn  # what of a row is the text
    max_bad_rows: int  # rows or files that may be unreadable
    commit: str | None = None  # of a Hub dataset; None for local files
    share: tuple[int, int] = (0, 1)  # which of how many parts of the files, equal in bytes

    @cached_property
    def is_remote(self) -> bool:
        """Whether the source is a Hub dataset."""
        return is_hub_dataset(self.part)

    @cached_property
    def files(self) -> list[InputFile]:
        """The files as they were when first asked for; none for a Hub dataset."""
        part = self.part
        return [] if self.is_remote else input_files(part.source, part.format, part.separator)

    @cached_property
    def _span(self) -> tuple[int, int]:
        """Of the bytes of all files, one after the other: behind which and up to which to read."""
        size, (number, count) = sum(size_of(file.path) for file in self.files), self.share
        return size * number // count, size * (number + 1) // count

    @property
    def total_bytes(self) -> int:
        """Bytes of the files that are read; 0 for a Hub dataset, whose size is not known."""
        return self._span[1] - self._span[0]

    def read(
        self, start: dict[str, Any] | None = None
    ) -> Iterator[tuple[SourcePosition, Document]]:
        """Yield every document with the position after it, from which reading can go on.

        Files come in byte order of their relative paths, rows in file order; one document is
        held at a time. A document belongs to the part of the text in which its last byte lies.

        Args:
            start: A position that was yielded earlier, as JSON values; None: the beginning.

        Raises:
            DataError: Nothing matches, nothing is readable, or nothing holds text.
            MissingExtraError: A format needs a package that is not installed.
        """
        bad = BadRows(self.max_bad_rows, start["bad"] if start else 0)
        if self.is_remote:
            for position, document in hub_documents(
                self.part, self.commit, self.column, bad, start
            ):
                yield SourcePosition(position, 0), document
            return
        is_empty = start is None
        is_guessed = self.part.format is None
        if is_empty and is_guessed and all(is_web_page(file.path) for file in self.files):
            raise DataError(  # one among other files, such as code, is text like them
                f"cannot read {spell(self.part.source)}: it is nothing but web pages, not plain "
                "text.",
                "Extract the text into .txt or .jsonl; data.format: text takes them as they are.",
            )
        first_file, first_row = (start["file"], start["row"]) if start else (0, 0)
        bytes_before = sum(size_of(file.path) for file in self.files[:first_file])
        (begin, end), is_whole = self._span, self.share == (0, 1)
        for index, file in enumerate(self.files[first_file:], first_file):
            skip, size = first_row if index == first_file else 0, size_of(file.path)
            if bytes_before + size > begin or is_whole:
                for row, done, document in read_documents(file, self.column, bad, skip):
                    place = bytes_before + min(max(done, 1), size)
                    if place > end and not is_whole:
                        return
                    if place > begin or is_whole:
                        is_empty = False
                        position = {"file": index, "row": row, "bad": bad.seen}
                        yield SourcePosition(position, bytes_before + done - begin), document
            bytes_before += size
        if is_empty and is_whole:
            raise DataError(
                f"there is no text in {spell(self.part.source)}.", "Give files that hold text."
            )


class Mixture:
    """Decides which of several sources gives the next document, by their shares of the tokens.

    The next document comes from the source that is furthest behind its share. That depends on the
    tokens taken so far and on nothing else, so the order is the same on every machine; and after
    every document no source is ahead of its share by more than its longest document.

    Args:
        weights: Above 0, one for each source; only their ratios count.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(repr(weight)) for weight in weights]  # 4.5, not the float beside it
        shared = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * shared) for weight in exact]
        multiple = math.lcm(*whole)
        self._factors = [multiple // weight for weight in whole]

    def next_source(self, tokens_taken: Sequence[int]) -> int:
        """Return the index of the source that gives the next document: the first of equals."""
        progress = [
            tokens * factor for tokens, factor in zip(tokens_taken, self._factors, strict=True)
        ]
        return progress.index(min(progress))


def open_sources(data: Data, tokenizer: Path | None = None) -> list[Source]:
    """Open what a recipe trains on, in its order.

    Args:
        tokenizer: Directory of the tokenizer, whose chat template renders messages.

    Raises:
        DataError: There are messages to render, and no chat template.
    """
    given = TextSource(source="", config=data.config, split=data.split, revision=data.revision)
    return _sources(data.source, given, data, tokenizer)


def most_ids(data: Data) -> int | None:
    """Bound the ids of a text by the bytes of its files, of which none makes more than one id.

    Returns:
        None where that says nothing: texts of the Hub, messages, and compressed files.
    """
    if data.messages is not None:
        return None
    with suppress(DataError, RecipeError):  # what is wrong with a source is told when it is read
        sources = open_sources(data)
        files = [file.path for source in sources for file in source.files]
        if not any(s.is_remote for s in sources) and not any(map(is_packed, files)):
            return sum(map(size_of, files)) + _MOST_ADDED * len(files)
    return None


def plain_documents(data: Data, tokenizer: Path) -> Iterator[Document]:
    """Read all documents of a text that is given without a recipe.

    Raises:
        DataError: It cannot be read; the way out says how a command sets a key.
    """
    try:
        for opened in open_sources(data, tokenizer):
            for _, document in opened.read():
                yield document
    except DataError as error:
        if "data." in error.hint:
            error.hint += " Without a recipe: --set data.KEY=VALUE."
        raise


def describe_text(data: Data) -> str:
    """Name a text, and the keys that say how it is read."""
    names = [data.source] if isinstance(data.source, str) else map(str, data.source)
    keys = data.model_dump(exclude_defaults=True, exclude={"source"})
    said = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return ", ".join(names) + (f" ({said})" if said else "")


def held_out_sources(data: Data, tokenizer: Path | None = None) -> list[Source]:
    """Open the validation set that a recipe brings; empty where it brings none."""
    if data.val_source is None:
        return []
    return _sources(data.val_source, TextSource(source=""), data, tokenizer)


def _sources(
    source: str | list[str] | list[TextSource],
    settings: TextSource,
    data: Data,
    tokenizer: Path | None,
) -> list[Source]:
    entries = source if isinstance(source, list) else []
    parts = [part for part in entries if isinstance(part, TextSource)]
    if not parts:
        names = source if isinstance(source, str) else [str(name) for name in source]
        parts = [settings.model_copy(update={"source": names})]
    keys = ("text_column", "messages", "format", "separator")
    defaults = {key: getattr(data, key) for key in keys}
    whole = [part.model_copy(update=_missing(part, defaults)) for part in parts]
    render = None
    if any(part.messages for part in whole):
        render = _unopened if tokenizer is None else chat_renderer(tokenizer)
    return [
        Source(
            part,
            TextColumn(part.messages, render)
            if part.messages
            else TextColumn(part.text_column or ""),
            data.max_bad_rows,
        )
        for part in whole
    ]


def _missing(part: TextSource, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a source takes from `data`: no messages where it names a text column itself."""
    names_column = part.text_column is not None
    return {
        key: value
        for key, value in defaults.items()
        if getattr(part, key) is None and not (names_column and key == "messages")
    }


def _unopened(_: object) -> str:
    raise RecipeError(
        "data.messages needs a chat template, which a tokenizer that is trained here has not.",
        "Name one in reference.train.tokenizer.",
    )
