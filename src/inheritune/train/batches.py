"""The samples of a step: a function of seed and position alone.

B sequences per forward, T tokens per sequence.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from inheritune.data.order import sample_ids
from inheritune.data.tokens import TokenStream
from inheritune.recipe import Train

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["micro_batches"]


def micro_batches(stream: TokenStream, recipe: Train, first: int, stop: int) -> "Iterator[Tensor]":
    """The samples at positions [first, stop), (B, T + 1) int64 at a time.

    Args:
        stream: Training tokens.
        recipe: Seed, sequence length, B.
        first: Position in the order of samples, over all epochs, from 0.
        stop: Behind the last one; a whole number of micro-batches away.
    """
    num_samples = stream.num_samples(recipe.seq_len)
    for begin in range(first, stop, recipe.micro_batch):
        ids, position, end = [], begin, begin + recipe.micro_batch
        while position < end:
            epoch, index = divmod(position, num_samples)
            count = min(end - position, num_samples - index)
            ids.append(sample_ids(index, index + count, num_samples, recipe.seed, epoch))
            position += count
        yield torch.from_numpy(stream.samples(np.concatenate(ids), recipe.seq_len))
