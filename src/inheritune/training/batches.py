"""Read the samples of a step, which depend on the seed and on the position alone.

B sequences per micro-batch, T tokens per sequence.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inheritune.data.order import sample_ids
from inheritune.data.tokens import TokenStream
from inheritune.recipe.training import Train


def micro_batches(stream: TokenStream, train: Train, first: int, stop: int) -> Iterator[Tensor]:
    """Yield the samples at positions [first, stop), (B, T + 1) int64 at a time.

    Positions count over all epochs; there is a whole number of micro-batches between the two.
    """
    num_samples = stream.num_samples(train.seq_len)
    for begin in range(first, stop, train.resolved_micro_batch):
        ids = sample_numbers(num_samples, train, begin, begin + train.resolved_micro_batch)
        yield torch.from_numpy(stream.samples(ids, train.seq_len))


def sample_numbers(num_samples: int, train: Train, first: int, stop: int) -> NDArray[np.uint64]:
    """Return the numbers of the samples at positions [first, stop) over all epochs."""
    ids, position = [], first
    while position < stop:  # every epoch has an order of its own
        epoch, index = divmod(position, num_samples)
        count = min(stop - position, num_samples - index)
        ids.append(sample_ids(index, index + count, num_samples, train.seed, epoch))
        position += count
    return np.concatenate(ids)
