"""Compute the order in which samples are seen from a position; it is never stored."""

import hashlib

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1  # a change below is a new version, and a run of an older one cannot be resumed


def sample_ids(
    start: int, stop: int, num_samples: int, seed: int, epoch: int
) -> NDArray[np.uint64]:
    """Return the sample ids at positions [start, stop) of one epoch: a shuffle without memory.

    A four-round Feistel network permutes the next even power of two; ids beyond the end are
    permuted again until they fall into range. Over a whole epoch every sample comes exactly once.

    Args:
        start: First position, in samples, from 0.
        stop: Position after the last one, at most ``num_samples``.
        num_samples: Samples in the epoch, at least 1.
        seed: Any integer; other seeds give other orders.
        epoch: Pass over the data, from 0; each has its own order.

    Returns:
        (stop - start,) uint64, each in [0, num_samples).

    Raises:
        ValueError: The positions do not lie in the epoch.
    """
    if not 0 <= start <= stop <= num_samples:
        raise ValueError(f"positions [{start}, {stop}) are not in an epoch of {num_samples}")
    half = max(4, (max(num_samples - 1, 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    name = f"inheritune-order-1:{seed}:{epoch}"
    keys = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u8")
    ids = np.arange(start, stop, dtype=np.uint64)
    outside = np.ones(len(ids), dtype=bool)
    while outside.any():
        left, right = ids[outside] >> shift, ids[outside] & mask
        for key in keys:
            x = right ^ key  # mixed by SplitMix64's output function. Steele, Lea, Flood 2014
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((x ^ (x >> np.uint64(31))) & mask)
        ids[outside] = (left << shift) | right
        outside = ids >= num_samples
    return ids
