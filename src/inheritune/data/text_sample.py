"""Read the beginning of a text, to count its tokens and documents before it is prepared."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inheritune.data.document import PLACES, sampled, split_place
from inheritune.data.sources import open_sources
from inheritune.data.tokenizer import TextTokenizer, encode_documents
from inheritune.errors import Interrupted
from inheritune.recipe.data import Data
from inheritune.recipe.rules import TextFacts

_MOST_BYTES = 4 << 20  # of text from each source; two seconds of one core


def sample_text(
    data: Data, tokenizer: TextTokenizer, stop: Callable[[], bool], most_bytes: int = _MOST_BYTES
) -> tuple[TextFacts, NDArray[np.int64]]:
    """Count the tokens and documents of a recipe's text; of a long one, by its beginning.

    Args:
        stop: Stop flag, read before every document.
        most_bytes: Bytes of text, in UTF-8, after which a source is not read on.

    Returns:
        The facts, and the (n,) ids of what was read, joined as prepared tokens are.

    Raises:
        DataError: The text is missing, broken, or blank.
        Interrupted: ``stop`` returned true.
    """
    documents: list[tuple[float | None, int]] = []
    ids: list[NDArray[np.int64]] = []
    is_whole, total = True, 0.0
    for source in open_sources(data, tokenizer.directory):
        num_bytes = num_ids = position = 0
        for place, document in source.read():
            if stop():
                raise Interrupted("reading the text was interrupted.", "Run the same command.")
            position = place.bytes
            if num_bytes > most_bytes:
                is_whole = False
                break
            num_bytes += len(document.text.encode())
            if sampled(document, data.sample):
                split = split_place(document, data)
                special = data.special_tokens_in_text or document.is_rendered
                (encoded,) = encode_documents(tokenizer, [document.text], special)
                documents.append((None if split is None else split / PLACES, len(encoded)))
                ids.append(encoded)
                num_ids += len(encoded)
        else:
            position = source.total_bytes
        # Positions are bytes of files, which may be compressed; a Hub dataset has none.
        total += num_ids * source.total_bytes / position if position else float("inf")
    facts = TextFacts(documents, None if total == float("inf") else round(total), is_whole)
    return facts, np.concatenate([np.empty(0, dtype=np.int64), *ids])
