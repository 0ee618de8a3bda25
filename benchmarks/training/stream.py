"""Write random ids as a real stream of shards, and make the recipe that trains on them."""

from pathlib import Path
from typing import Any

import numpy as np
from training.plain_loop import SAMPLES
from training.shapes import Shape

from inheritune.data.shards import ShardWriter
from inheritune.data.tokens import TokenStream
from inheritune.recipe.training import Train

_STEPS = 10**6  # more than anybody waits for


def random_stream(shape: Shape, folder: Path) -> TokenStream:
    """As `prepare` would have left it, but of nothing."""
    ids = np.random.default_rng(0).integers(0, shape.vocab, SAMPLES * shape.length + 1)
    writer = ShardWriter(folder, "train", shape.vocab)
    writer.add(ids)
    return TokenStream(folder, writer.close(), shape.vocab)


def recipe_of(shape: Shape, changes: dict[str, Any], accumulate: int = 1) -> Train:
    """The defaults, but for the batch; a step takes `accumulate` batches of the shape."""
    batch_tokens = shape.tokens * accumulate
    fields = {
        "tokens": _STEPS * batch_tokens,
        "seq_len": shape.length,
        "batch_tokens": batch_tokens,
        "micro_batch": shape.batch,
        "save_minutes": 1e6,
    }
    return Train.model_validate(fields | changes)
