"""How weights are spread over files, and what those are called."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

__all__ = ["MAX_SHARD_BYTES", "Shardable", "split_into_shards"]

MAX_SHARD_BYTES = 5_000_000_000


class Shardable(Protocol):
    """A tensor before it is written: its bytes, and the file they come from."""

    @property
    def size(self) -> int:
        """Bytes in the new file."""

    @property
    def origin(self) -> object:
        """The same for all tensors of one file."""


T = TypeVar("T", bound=Shardable)


def split_into_shards(tensors: Iterable[T], largest: int | None = None) -> dict[str, list[T]]:
    """One file for each that they come from, in the same order, so that ranges stay neighbours.

    Args:
        tensors: Those of one origin follow each other.
        largest: Bytes of a file, but for a single tensor that is larger; None: 5 GB.

    Returns:
        By file name, as transformers calls them.
    """
    limit = largest or MAX_SHARD_BYTES
    shards: list[list[T]] = []
    size = 0
    for tensor in tensors:
        size += tensor.size
        if not shards or tensor.origin != shards[-1][-1].origin or size > limit:
            shards.append([])
            size = tensor.size
        shards[-1].append(tensor)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": s for i, s in enumerate(shards, 1)}
