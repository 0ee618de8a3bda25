"""All documents of one source, for tests that read sources without preparing tokens."""

from collections.abc import Iterator

from inheritune.data.document import Document
from inheritune.data.sources import Source
from inheritune.recipe.data import TextSource


def documents(
    source: str | list[str], text_column: str = "text", max_bad_rows: int = 0
) -> Iterator[Document]:
    """Read every document of a source, which may be anything that ``data.source`` takes."""
    for _, document in Source(TextSource(source=source), text_column, max_bad_rows).read():
        yield document
