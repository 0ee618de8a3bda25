"""Write a model directory from a plan: the one place where every surgery is carried out.

A surgery (`cut`, `grow`, `stack`, `half_width`) only decides: it returns a `ModelPlan`, and
`write_model` does the rest. A new surgery is one small file with a function that makes such a plan.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import escape
from inheritune.model_files.copy import copy_side_files
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.model_files.safe_path import INDEX
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.scan import Scan, refuse_not_finite, scan
from inheritune.model_files.write import TargetTensor, split_into_shards, write_safetensors
from inheritune.surgery.class_check.ask_class import ClassCheck
from inheritune.system.disk_space import refuse_full_disk
from inheritune.system.files import (
    new_directory,
    refuse_used_directory,
    sync_file,
    write_bytes,
)
from inheritune.system.progress import Listener, silent

_SCRATCH = ".scratch"
_WORKERS = 3  # one waits for the class check, two read back and sync what is written
# A model up to this size is copied while the class check runs, in about the time that takes.
_COPIED_DURING_CHECK = 2**31


@dataclass(frozen=True)
class WrittenFile:
    """A weight file of the new model."""

    name: str
    tensors: Sequence[TargetTensor]
    placed: Sequence[Tensor]  # the same tensors, where they lie in this file
    scans: Mapping[str, Scan]  # digests and checks of their values, by tensor name


@dataclass(frozen=True)
class Written:
    """A written model, as the functions that make its records see it."""

    files: Sequence[WrittenFile]
    made: frozenset[str]  # names of the tensors that `ModelPlan.make` made
    check: ClassCheck

    def tensor_entries(self) -> dict[str, dict[str, Any]]:
        """Make the ``"tensors"`` of a record: file, source range and digests of each, by name."""
        return {
            tensor.name: _tensor_entry(tensor, file, tensor.name in self.made)
            for file in self.files
            for tensor in file.tensors
        }


@dataclass(frozen=True)
class ModelPlan:
    """All decisions about a model directory, before a byte of it is written."""

    source: ModelDirectory  # the model whose side files and weight metadata the new one takes over
    reference: ModelDirectory  # the model that ``downloads`` are of; often the same
    config: Mapping[str, Any]
    tensors: Sequence[TargetTensor]  # as they are to lie on disk; those of one source file together
    downloads: Sequence[Tensor]  # tensors of ``reference`` whose bytes are needed
    check: Callable[[], ClassCheck]  # by the model's class; raises to refuse the plan
    records: Callable[[Written], Mapping[str, bytes]]  # files that say where the model is from
    # Makes the tensors that are no ranges of a source file (fresh or rearranged weights) in a
    # directory, which it creates, and returns them by name.
    make: Callable[[Path], Mapping[str, TargetTensor]] = lambda scratch: {}
    sha256: bool = False  # whether SHA-256 digests are computed beside XXH3


def write_model(out: Path, plan: ModelPlan, on_progress: Listener = silent) -> ModelDirectory:
    """Carry out a plan. The directory appears by one rename, complete, or not at all.

    Raises:
        RecipeError: ``out`` is already used.
        UnsupportedModelError: The class check refuses the plan.
        SourceError: A source file ended early, or holds NaN or infinite values.
        MachineError: The disk is full or read-only.
    """
    size = sum(tensor.size for tensor in plan.tensors)
    side_bytes = sum(path.stat().st_size for path in plan.source.side_files)
    hint = "Free some space, or name a directory on another disk."
    refuse_used_directory(out)
    refuse_full_disk(out, size + side_bytes, f"the files of {escape(out)}", hint)
    with new_directory(out) as staging, ThreadPoolExecutor(_WORKERS) as background:
        check = background.submit(plan.check)
        # Nothing is downloaded, and nothing large copied, for a plan that will be refused.
        if size > _COPIED_DURING_CHECK or plan.reference.missing_bytes(plan.downloads):
            check.result()
        plan.reference.download(plan.downloads, on_progress)
        scratch = staging / _SCRATCH
        made = plan.make(scratch)
        files = _write_weights(plan, made, staging, background)
        shutil.rmtree(scratch, ignore_errors=True)
        checked = check.result()
        for file in files:
            refuse_not_finite(file.scans, plan.source.path, checked.unused_of(file.scans))
        write_bytes(staging / "config.json", to_json(plan.config))
        copy_side_files(plan.source.path, staging, plan.source.side_files)
        for name, data in plan.records(Written(files, frozenset(made), checked)).items():
            write_bytes(staging / name, data)
    return open_model(str(out))


def _write_weights(
    plan: ModelPlan, made: Mapping[str, TargetTensor], staging: Path, background: ThreadPoolExecutor
) -> list[WrittenFile]:
    scanning = []
    for name, shard in split_into_shards(plan.tensors).items():
        # Some loaders refuse a file whose metadata names no format.
        metadata = {"format": "pt"} | plan.source.metadata.get(shard[0].source.file.name, {})
        tensors = [made.get(tensor.name, tensor) for tensor in shard]
        # What is written is read back and synced while the rest is still being copied.
        pieces = [
            (placed, background.submit(_scan_and_sync, staging / name, placed, plan.sha256))
            for placed in write_safetensors(staging / name, tensors, metadata)
        ]
        scanning.append((name, shard, pieces))
    files = []
    for name, shard, pieces in scanning:
        scans = {key: value for _, future in pieces for key, value in future.result().items()}
        files.append(WrittenFile(name, shard, [t for group, _ in pieces for t in group], scans))
    if len(files) > 1:
        write_bytes(staging / INDEX, to_json(_index(plan.source, files)))
    return files


def _scan_and_sync(file: Path, placed: Sequence[Tensor], sha256: bool) -> dict[str, Scan]:
    scans = scan(placed, sha256=sha256)
    sync_file(file)
    return scans


def _index(source: ModelDirectory, files: Sequence[WrittenFile]) -> dict[str, Any]:
    tensors = [tensor for file in files for tensor in file.tensors]
    totals = {"total_size": sum(t.size for t in tensors)}
    if "total_parameters" in source.index_metadata:
        totals["total_parameters"] = sum(t.source.items for t in tensors)
    return {
        "metadata": dict(source.index_metadata) | totals,
        "weight_map": {t.name: file.name for file in files for t in file.tensors},
    }


def _tensor_entry(tensor: TargetTensor, file: WrittenFile, is_made: bool) -> dict[str, Any]:
    source, result = tensor.source, file.scans[tensor.name]
    origin = {"file": source.file.name, "offset": source.offset, "size": source.size}
    optional = {
        "pitch": source.pitch or None,
        "name": source.name if source.name != tensor.name else None,
        "dtype": source.dtype if tensor.is_cast else None,
    }
    origin |= {key: value for key, value in optional.items() if value is not None}
    digests = {"xxh3": result.xxh3, "sha256": result.sha256}
    return {"file": file.name, "source": None if is_made else origin} | {
        key: digest for key, digest in digests.items() if digest
    }


def to_json(value: Mapping[str, Any]) -> bytes:
    """Format a value as an indented JSON file; the same value gives the same bytes."""
    return (json.dumps(value, indent=2) + "\n").encode("ascii")
