"""Write windows of the training text as tokens of their own, some of them held out.

What is chosen by these held-out windows can still be measured on the run's validation text.
N windows of T tokens.
"""

from pathlib import Path
from typing import Any

import numpy as np

from inheritune.data.journal import Journal, make_token_directory
from inheritune.data.order import sample_ids
from inheritune.data.shards import SHARD_IDS
from inheritune.data.token_writer import TokenWriter
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenDirectory, TokenStream, open_tokens
from inheritune.errors import DataError

_MOST_HELD_OUT = 4  # a quarter of a short text, at most


def write_window_tokens(
    tokens: TokenDirectory,
    tokenizer: TextTokenizer,
    out: Path,
    needed: int,
    held_out: int,
    seq_len: int,
    seed: int,
) -> TokenDirectory:
    """Write windows in the order in which a training sees them, and the last of this order as val.

    Args:
        tokens: Only its training split is read.
        needed: Tokens to train on; fewer are written where the text is shorter.
        held_out: Windows to hold out; of a short text fewer.
        seq_len: T.
        seed: Seed of the order.

    Raises:
        DataError: The text has fewer than two windows, or ``out`` holds something else.
    """
    stream, manifest = tokens.train, tokens.manifest
    available = stream.num_samples(seq_len)
    last = max(1, min(held_out, available // _MOST_HELD_OUT))
    first = min(-(-needed // seq_len), available - last)
    if first < 1:
        raise DataError(
            f"the training text has {available} window{'s' * (available != 1)} of {seq_len} "
            "tokens: too few to train on some and hold out others.",
            "Give more text.",
        )
    places = {"train": (0, first), "val": (available - last, available)}
    request = {"windows of": tokens.fingerprint, "places": places, "seq_len": seq_len, "seed": seed}

    def build(journal: Journal) -> dict[str, Any]:
        journal.clear()
        rows = manifest["embedding_rows"]
        writer = TokenWriter(journal.shards, journal.directory, tokenizer, rows, SHARD_IDS)
        for split, (start, stop) in places.items():
            chosen = sample_ids(start, stop, available, seed, epoch=0)
            writer.add(split, _windows(stream, chosen, seq_len), len(chosen))
        writer.close()
        return writer.manifest(
            bos=manifest["policy"].get("bos"),
            special_tokens_in_text=bool(manifest["policy"].get("special_tokens_in_text")),
            split={"rule": "windows"},
            sources={"source": "windows of the training text"},
            order="of training",
            val_bytes=0,
            overlap={},
            request=request,
        )

    make_token_directory(out, build)
    return open_tokens(out)


def _windows(stream: TokenStream, chosen: Any, seq_len: int) -> Any:
    """Ids of windows one after another, (N T + 1,): one label in T is that of the next window."""
    samples = stream.samples(chosen, seq_len)
    return np.append(samples[:, :-1].reshape(-1), samples[-1, -1])
