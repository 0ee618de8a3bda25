"""All documents of one source, for tests that read sources without preparing tokens."""

from collections.abc import Iterator
from typing import Any

from inheritune.data.document import Document
from inheritune.data.sources import Source
from inheritune.data.text_column import TextColumn
from inheritune.recipe.data import TextSource


def documents(
    source: str | list[str], text_column: str = "text", max_bad_rows: int = 0, **settings: Any
) -> Iterator[Document]:
    """Read every document of a source, which may be anything that ``data.source`` takes."""
    part, column = TextSource(source=source, **settings), TextColumn(text_column)
    for _, document in Source(part, column, max_bad_rows).read():
        yield document
