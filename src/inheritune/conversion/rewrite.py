"""Write PyTorch checkpoints as safetensors and read them back, in a confined process.

Run as ``python -m`` this module by `sandbox.ask`.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.conversion.confinement import serve
from inheritune.conversion.unpickle import Checkpoint, safetensors_dtype
from inheritune.errors import MachineError, SourceError, escape
from inheritune.model_files.config import text_config
from inheritune.model_files.layers import numbered
from inheritune.model_files.quantisation import sign_of_quantisation
from inheritune.model_files.safetensors import Tensor as Entry
from inheritune.model_files.safetensors import item_bits
from inheritune.model_files.write import TargetTensor, file_header, split_into_shards

if TYPE_CHECKING:
    from torch import Tensor


HEADS = {"lm_head", "embed_out", "output", "output_layer", "head"}
"""Names that an output head can have as a module."""
_CHUNK = 2**22  # values tested, and bytes written, at a time

Digest = tuple[str, str, tuple[int, ...]]
"""SHA-256 of a tensor's bytes, its dtype and its shape; equal tensors have equal ones."""


def _prepare(request: Mapping[str, Any]) -> bool:
    import torch  # noqa: F401 - before the guard, so that it may still open libraries

    return is_tied(request["config"])


def _scan(checkpoint: Checkpoint, tied: bool) -> tuple[list[TargetTensor], dict[str, Digest]]:
    """List all tensors of a checkpoint, and digests of those that may be head or embedding."""
    tensors: dict[str, TargetTensor] = {}
    digests: dict[str, Digest] = {}
    for file in checkpoint.files:
        for entry, digest in _entries(checkpoint, file, tied):
            if other := tensors.get(entry.name):
                both = f"{other.origin.name} and {file.name}"
                raise SourceError(
                    f"{escape(entry.name)} is in two files, {both}.", "Download it again."
                )
            tensors[entry.name] = TargetTensor(entry.name, entry, entry.dtype)
            if digest:
                digests[entry.name] = digest, entry.dtype, entry.shape
    size = sum(tensor.size for tensor in tensors.values())
    limit = 4 * sum(file.stat().st_size for file in checkpoint.files)
    if size > limit:  # many names for the same memory
        raise SourceError(f"its tensors would take {size:,} bytes, four times their files' size.")
    return list(tensors.values()), digests


def _entries(checkpoint: Checkpoint, file: Path, tied: bool) -> list[tuple[Entry, str]]:
    """List the tensors of a file, with the SHA-256 of those that may be head or embedding."""
    # A list, not a generator: nothing may hold a tensor, and so its file, while the next is read.
    entries = []
    for name, tensor in checkpoint.load(file).items():
        dtype, size = str(safetensors_dtype(tensor)), tensor.numel() * tensor.element_size()
        comparable = tied and tensor.ndim == 2 and numbered(name) is None
        digest = hashlib.sha256(_bytes(tensor).numpy().data).hexdigest() if comparable else ""
        entries.append((Entry(name, dtype, tuple(tensor.shape), file, 0, size), digest))
    return entries


def is_tied(config: Mapping[str, Any]) -> bool:
    """Tell whether the head is the embedding; by the config's class where the file does not say."""
    for section in (config, text_config(config)):
        if isinstance(tied := section.get("tie_word_embeddings"), bool):
            return tied
    from transformers import AutoConfig

    try:
        default = AutoConfig.for_model(str(config.get("model_type")))
    except Exception:  # unknown to transformers; what the file holds is then all kept
        return False
    return bool(getattr(default, "tie_word_embeddings", True))


def is_head_weight(name: str) -> bool:
    """Return whether a tensor is the weight of an output head, by its name; a bias is not."""
    *_, module, kind = f".{name}".split(".")
    return kind == "weight" and module in HEADS


def _tied_heads(digests: Mapping[str, Digest]) -> tuple[dict[str, str], list[str]]:
    """Find the heads of a tied model that equal its embedding.

    Returns:
        The reason for dropping each of them, by name; and warnings about heads that differ.
    """
    heads = [name for name in digests if is_head_weight(name)]
    others = {digest: name for name, digest in digests.items() if name not in heads}
    dropped, warnings = {}, []
    for head in heads:
        if twin := others.get(digests[head]):
            dropped[head] = f"the same as {escape(twin)}, to which the config ties it"
        else:
            warnings.append(
                f"the config ties {escape(head)} to the embedding, but it differs: it is kept, and "
                "transformers may not use it."
            )
    return dropped, warnings


def _bytes(tensor: "Tensor") -> "Tensor":
    """View a tensor as its bytes, (n,) uint8; copied only where it is not contiguous."""
    import torch

    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _write(out: Path, entries: list[TargetTensor], checkpoint: Checkpoint) -> list[str]:
    """Write one safetensors file; return the names of tensors that hold NaN or infinity."""
    tensors = checkpoint.load(entries[0].origin)
    with out.open("xb") as file:
        file.write(file_header(entries, {"format": "pt"}))
        for entry in entries:
            data = _bytes(tensors[entry.name]).numpy().data
            for start in range(0, len(data), _CHUNK):
                file.write(data[start : start + _CHUNK])
        file.flush()
        os.fsync(file.fileno())
    return [escape(entry.name) for entry in entries if not _is_finite(tensors[entry.name])]


def _is_finite(tensor: "Tensor") -> bool:
    import torch

    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return True
    flat = tensor.reshape(-1)
    return all(
        bool(torch.isfinite(flat[i : i + _CHUNK]).all()) for i in range(0, len(flat), _CHUNK)
    )


def _compare(out: Path, entries: list[TargetTensor], checkpoint: Checkpoint) -> None:
    """Read a written file with the safetensors library, and refuse any difference."""
    import torch
    from safetensors import safe_open

    tensors = checkpoint.load(entries[0].origin)
    with safe_open(out, framework="pt") as written:
        same = set(written.keys()) == {entry.name for entry in entries}
        for entry in entries:
            if not same:
                break
            copy, expected = written.get_tensor(entry.name), tensors[entry.name]
            same = copy.dtype == expected.dtype and copy.shape == expected.shape
            same = same and torch.equal(_bytes(copy), _bytes(expected))
    if not same:
        raise MachineError(
            f"{out.name} is not what was written to it.", "Check the disk and convert again."
        )


def _convert(request: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    import torch

    work = Path(request["work"])
    checkpoint = Checkpoint([Path(file) for file in request["files"]])
    tensors, digests = _scan(checkpoint, tied)
    entries = [tensor.source for tensor in tensors]
    if sign := sign_of_quantisation(request["config"], entries, Path()):
        raise SourceError(
            f"the weights are quantised ({sign}), which is not read from pickles.",
            "Use the bf16, fp16 or fp32 weights they were made from.",
        )
    dropped, warnings = _tied_heads(digests)
    remaining = [tensor for tensor in tensors if tensor.name not in dropped]
    plan = {
        # Widest values first: then each tensor begins at a multiple of its own item size.
        name: sorted(shard, key=lambda tensor: -item_bits(tensor.dtype))
        for name, shard in split_into_shards(remaining, request["largest_shard"]).items()
    }
    not_finite = [n for name, shard in plan.items() for n in _write(work / name, shard, checkpoint)]
    for name, shard in plan.items():
        _compare(work / name, shard, checkpoint)
    if not_finite:
        warnings.append(
            f"NaN or infinity in {len(not_finite)} tensors, such as {not_finite[0]}: kept as they "
            "are."
        )
    warnings += [f"names held {wrapper}: taken off." for wrapper in checkpoint.wrappers]
    return {
        "torch": torch.__version__,
        "files": list(plan),
        "sources": [
            [tensor.name for tensor in tensors if tensor.origin == file]
            for file in checkpoint.files
        ],
        "dropped": checkpoint.left_out | dropped,
        "warnings": warnings,
        "unmapped": checkpoint.unmapped,
    }


if __name__ == "__main__":
    serve(_prepare, _convert)
