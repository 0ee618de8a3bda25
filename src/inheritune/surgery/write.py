"""The weight files of a target: written, synced and read back, one while the next is copied."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.model_files.copy import write_file
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.link import link_file
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.scan import Scan, refuse_not_finite, scan
from inheritune.model_files.write import TargetTensor, write_safetensors
from inheritune.system.files import sync_file

__all__ = ["Written", "describe_tensor", "to_json", "write_weights"]

_INDEX = "model.safetensors.index.json"

# Tensors where they lie now, and what one pass over them will have found.
_Pieces = list[tuple[list[Tensor], Future[dict[str, Scan]]]]


@dataclass(frozen=True)
class Written:
    """A weight file of a target.

    Attributes:
        name: Of the file.
        tensors: As planned.
        placed: The same, where they lie now.
        scans: What one pass over them found, by name.
    """

    name: str
    tensors: Sequence[TargetTensor]
    placed: Sequence[Tensor]
    scans: Mapping[str, Scan]


def write_weights(
    source: ModelDirectory,
    shards: Mapping[str, Sequence[TargetTensor]],
    staging: Path,
    background: ThreadPoolExecutor,
    *,
    made: Mapping[str, TargetTensor] | None = None,
    link: bool = False,
    sha256: bool = False,
) -> list[Written]:
    """Write the weight files of a target, and their index where there is more than one.

    Args:
        source: The model whose files' metadata is taken over.
        shards: The tensors of each file, by its name.
        staging: Directory to write to.
        background: Where one file is read back and synced while the next is copied.
        made: Tensors that come from elsewhere, by name; they lie where the others would have.
        link: Whether whole files of the source are linked instead.
        sha256: Whether SHA-256 digests are computed, too.

    Raises:
        SourceError: A file ended early, or holds NaN or infinite values.
    """
    waiting = []
    for number, (name, shard) in enumerate(shards.items(), 1):
        if link:
            waiting.append(_link(shard, staging, number))
            continue
        # Without a format in its metadata, a file is refused by some loaders.
        metadata = {"format": "pt"} | source.metadata.get(shard[0].source.file.name, {})
        tensors = [(made or {}).get(tensor.name, tensor) for tensor in shard]
        # What is written is read back, and on its way to the disk, while the rest is copied.
        pieces = [
            (placed, background.submit(_settle, staging / name, placed, sha256))
            for placed in write_safetensors(staging / name, tensors, metadata)
        ]
        waiting.append((name, shard, pieces))
    files = [_settled(name, shard, pieces) for name, shard, pieces in waiting]
    for file in files:
        refuse_not_finite(file.scans, source.path)
    if len(files) > 1 or link:
        write_file(staging / _INDEX, to_json(_index(source, files)))
    return files


def _settle(file: Path, placed: Sequence[Tensor], sha256: bool) -> dict[str, Scan]:
    found = scan(file, placed, sha256=sha256)
    sync_file(file)
    return found


def _settled(name: str, shard: Sequence[TargetTensor], pieces: _Pieces) -> Written:
    placed = [tensor for some, _ in pieces for tensor in some]
    scans = {key: found for _, scans in pieces for key, found in scans.result().items()}
    return Written(name, shard, placed, scans)


def _index(source: ModelDirectory, files: Sequence[Written]) -> dict[str, Any]:
    tensors = [tensor for file in files for tensor in file.tensors]
    totals = {"total_size": sum(t.size for t in tensors)}
    if "total_parameters" in source.index_metadata:
        totals["total_parameters"] = sum(t.source.items for t in tensors)
    return {
        "metadata": dict(source.index_metadata) | totals,
        "weight_map": {t.name: file.name for file in files for t in file.tensors},
    }


def _link(
    shard: Sequence[TargetTensor], staging: Path, number: int
) -> tuple[str, Sequence[TargetTensor], _Pieces]:
    # A file of this name is never taken for a whole model: the index says what counts in it.
    name = f"linked-{number:05}.safetensors"
    link_file(shard[0].source.file, staging / name)
    # Nothing of it was written, so nothing of it is read either.
    unread: Future[dict[str, Scan]] = Future()
    unread.set_result({tensor.name: Scan("", None, True, False) for tensor in shard})
    return name, shard, [([tensor.source for tensor in shard], unread)]


def describe_tensor(tensor: TargetTensor, file: Written, is_fresh: bool) -> dict[str, Any]:
    """What the record says of one tensor: its file, the range it came from, its digests."""
    source = tensor.source
    origin: dict[str, Any] = {
        "file": source.file.name,
        "offset": source.offset,
        "size": source.size,
    }
    origin |= {"pitch": source.pitch} if source.pitch else {}
    origin |= {"name": source.name} if source.name != tensor.name else {}
    origin |= {"dtype": source.dtype} if tensor.is_cast else {}
    found = file.scans[tensor.name]
    digests = {"xxh3": found.xxh3, "sha256": found.sha256}
    entry = {"file": file.name, "source": None if is_fresh else origin}
    return entry | {key: digest for key, digest in digests.items() if digest}


def to_json(value: Mapping[str, Any]) -> bytes:
    """A JSON file for people to read; the same value gives the same bytes."""
    return (json.dumps(value, indent=2) + "\n").encode("ascii")
