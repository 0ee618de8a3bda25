"""The samples of a step: a function of seed and position alone.

B sequences per forward, T tokens per sequence.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from inheritune.data.order import sample_ids
from inheritune.data.tokens import TokenStream
from inheritune.recipe.schema import Train

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["micro_batches", "sample_numbers"]


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
        ids = sample_numbers(num_samples, recipe, begin, begin + recipe.micro_batch)
        yield torch.from_numpy(stream.samples(ids, recipe.seq_len))


def sample_numbers(num_samples: int, recipe: Train, first: int, stop: int) -> NDArray[np.uint64]:
    """Which samples are at positions [first, stop) of the order, (stop - first,).

    Args:
        num_samples: In an epoch.
        recipe: Seed.
        first: Position over all epochs, from 0.
        stop: Behind the last one.
    """
    ids, position = [], first
    while position < stop:
        epoch, index = divmod(position, num_samples)
        count = min(stop - position, num_samples - index)
        ids.append(sample_ids(index, index + count, num_samples, recipe.seed, epoch))
        position += count
    return np.concatenate(ids)
