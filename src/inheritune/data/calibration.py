"""Read calibration text, and draw the windows of it that a repair is fitted on.

N windows of T tokens. Layers are chosen by windows of `analysis.sequences.draw_sequences`, which
may begin with BOS, in the order of the text. One function for both would draw other windows for one
of them, and so change scores or repaired weights that are on record.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.order import sample_ids
from inheritune.data.text_stream import encoded_documents
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenStream
from inheritune.errors import DataError
from inheritune.model_files.config import max_positions
from inheritune.recipe.data import Data

WINDOWS = 32  # that layers are chosen by
MOST_TOKENS = 256  # in a window
_READ = 64  # a text is read until it has this many times the ids that are to be drawn from it


def calibration_windows(
    stream: TokenStream | NDArray[np.int64], tokens: int, seq_len: int, seed: int = 0
) -> NDArray[np.int64]:
    """Draw windows that do not overlap: those that a training of this seed sees last.

    So a repair is not fitted on what the training then reads first. Where the text is long enough,
    the last `WINDOWS` of the order are left out: a tournament compares its candidates on them.

    Args:
        stream: The training split of prepared tokens, never the validation split; or ids of a text.
        tokens: N x T, rounded down to whole windows.
        seq_len: T.
        seed: Seed of the order.

    Returns:
        (N, T) int64.

    Raises:
        DataError: The text has fewer tokens.
    """
    count = max(1, tokens // seq_len)
    ids = len(stream) if isinstance(stream, np.ndarray) else stream.num_ids
    available = max(0, (ids - 1) // seq_len)
    if count > available:
        raise DataError(
            f"the calibration text has {available} window{'s' * (available != 1)} of {seq_len} "
            f"tokens, {count} are asked for.",
            f"Give more text, or ask for {available * seq_len} tokens."
            if available > 1  # a repair needs two
            else "Give more text.",
        )
    end = max(count, available - WINDOWS)
    chosen = sample_ids(end - count, end, available, seed, epoch=0)
    if isinstance(stream, np.ndarray):
        return stream[: available * seq_len].reshape(available, seq_len)[chosen]
    return stream.samples(chosen, seq_len)[:, :-1]


def ids_digest(windows: NDArray[np.int64]) -> str:
    """SHA-256 of the ids of windows, as 64 hexadecimal digits."""
    return hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest()


def window_tokens(config: Mapping[str, Any]) -> int:
    """Return T for a text: 256, or fewer where the positions of a model end."""
    return min(MOST_TOKENS, max_positions(config) or MOST_TOKENS)


def text_ids(text: Data, tokenizer: TextTokenizer, tokens: int) -> NDArray[np.int64]:
    """Encode the first documents of a text: enough to draw windows from, not all of a long one.

    Args:
        tokens: Number of ids that are to be drawn.

    Returns:
        (n,) int64, n >= 64 ``tokens`` unless the text ends before.
    """
    parts, total = [np.empty(0, dtype=np.int64)], 0
    for _, ids in encoded_documents(text, tokenizer):
        parts.append(ids)
        total += len(ids)
        if total >= _READ * tokens:
            break
    return np.concatenate(parts)
