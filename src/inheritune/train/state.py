"""Checkpoints: the training state on disk, complete or absent, and never a pickle."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inheritune.durable import published, read_json_file, sync_file, write_json
from inheritune.errors import CheckpointError, DataError
from inheritune.inputs import first_difference

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FORMAT", "Position", "load_newest", "save_checkpoint"]

FORMAT = 1
# What reading a damaged checkpoint can raise.
_BROKEN = (CheckpointError, DataError, SafetensorError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Position:
    """Where a training stands; with the recipe, this is all that is needed to go on.

    Attributes:
        step: Optimizer steps done.
        tokens: Training tokens seen.
        elapsed_s: Seconds of training before this point, over all restarts.
        skipped: Steps without an update, for a value that was not finite.
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    skipped: int = 0


def save_checkpoint(
    folder: Path,
    model: "nn.Module",
    optimizer: torch.optim.Optimizer,
    position: Position,
    inputs: Mapping[str, Any],
    keep: int,
) -> Path:
    """Publish weights, moments and position by one rename; then drop checkpoints beyond `keep`.

    Args:
        folder: Where checkpoints of this training lie.
        model: Weights to save, tied ones once.
        optimizer: AdamW over the model's parameters.
        position: Where the training stands.
        inputs: What the training was started with; it must be the same when it is continued.
        keep: Newest checkpoints to leave.

    Raises:
        MachineError: The disk is full or gone; earlier checkpoints are untouched.
    """
    for stale in folder.glob(".step-*.tmp-*"):  # of a process that was killed while saving
        shutil.rmtree(stale)
    final = folder / f"step-{position.step:08d}"
    if final.exists():
        if _is_whole(final):
            return final
        shutil.rmtree(final)  # it was passed over when this training was continued
    with published(final) as staging:
        save_file(_weights(model), staging / "model.safetensors")
        save_file(_moments(model, optimizer), staging / "optimizer.safetensors")
        write_json(staging / "trainer.json", {"position": asdict(position), "inputs": dict(inputs)})
        write_json(staging / "manifest.json", {"format": FORMAT, "files": _digests(staging)})
    saved = _newest_first(folder)
    # Later ones were passed over as damaged; counted, they would crowd out what is whole.
    later = [checkpoint for checkpoint in saved if checkpoint.name > final.name]
    for old in later + saved[len(later) :][keep:]:
        shutil.rmtree(old)
    return final


def load_newest(
    folder: Path,
    model: "nn.Module",
    optimizer: torch.optim.Optimizer,
    inputs: Mapping[str, Any],
) -> tuple[Position, list[str]]:
    """Load the newest checkpoint that is whole into a model and its optimizer.

    Args:
        folder: Where checkpoints of this training lie; it need not exist.
        model: Overwritten in place.
        optimizer: Its state is overwritten, or created.
        inputs: What the training is started with now.

    Returns:
        The position to go on from (the beginning when nothing was ever saved), and a sentence for
        every checkpoint that was passed over.

    Raises:
        CheckpointError: There are checkpoints and none is whole, or it belongs to other inputs.
    """
    passed_over: list[str] = []
    for checkpoint in _newest_first(folder):
        try:
            position, saved_inputs = _verify(checkpoint)
            weights = load_file(checkpoint / "model.safetensors")
            moments = load_file(checkpoint / "optimizer.safetensors")
        except _BROKEN as error:
            passed_over.append(f"passed over {checkpoint.name}: {error}")
            continue
        _refuse_other_inputs(checkpoint, saved_inputs, inputs)
        _put_weights(model, weights)
        _put_moments(model, optimizer, moments)
        return position, passed_over
    if passed_over:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {passed_over[0]}.",
            f"To train from the start, remove {folder}.",
        )
    return Position(), []


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def _weights(model: "nn.Module") -> "dict[str, Tensor]":
    # named_parameters and named_buffers list a tied tensor once; buffers that a module does not
    # persist (rotary tables) are rebuilt with the model and stay out, as in state_dict.
    kept = model.state_dict()
    named = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name in kept
    }
    return {name: tensor.detach().contiguous().cpu() for name, tensor in named.items()}


def _moments(model: "nn.Module", optimizer: torch.optim.Optimizer) -> "dict[str, Tensor]":
    return {
        f"{key}.{name}": value.detach().contiguous().cpu()
        for name, param in model.named_parameters()
        for key, value in optimizer.state.get(param, {}).items()
    }


def _put_weights(model: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
    here = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in weights.items():
            here[name].copy_(tensor)


def _put_moments(
    model: "nn.Module", optimizer: torch.optim.Optimizer, moments: "Mapping[str, Tensor]"
) -> None:
    params = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        key, _, name = full_name.partition(".")
        # AdamW keeps `step` on the CPU unless its kernels are fused on a GPU.
        device = params[name].device if tensor.ndim or params[name].is_cuda else "cpu"
        optimizer.state[params[name]][key] = tensor.to(device)


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    digests = {}
    for path in sorted(folder.iterdir()):
        sync_file(path)
        digests[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    return digests


def _verify(checkpoint: Path) -> tuple[Position, dict[str, Any]]:
    manifest = read_json_file(checkpoint / "manifest.json")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{checkpoint.name} has format {manifest['format']}, not {FORMAT}.")
    present = {path.name for path in checkpoint.iterdir()} - {"manifest.json"}
    listed = manifest["files"]
    if {"model.safetensors", "optimizer.safetensors", "trainer.json"} - set(listed):
        raise CheckpointError("its manifest is incomplete.")
    if missing := set(listed) - present:
        raise CheckpointError(f"{sorted(missing)[0]} is missing.")
    for name, expected in listed.items():
        if Path(name).name != name or _digest(checkpoint / name) != expected["sha256"]:
            raise CheckpointError(f"{name} is not what was written.")
    trainer = read_json_file(checkpoint / "trainer.json")
    return Position(**trainer["position"]), trainer["inputs"]


def _is_whole(checkpoint: Path) -> bool:
    try:
        _verify(checkpoint)
    except _BROKEN:
        return False
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_other_inputs(
    checkpoint: Path, saved: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    difference = first_difference(saved, now)
    if difference is not None:
        key, before, after = difference
        raise CheckpointError(
            f"{checkpoint} was written with {key} = {before!r}, now it is {after!r}.",
            "Put it back, or give the run another name.",
        )
