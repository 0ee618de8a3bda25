"""Save and load the state of a training: on disk complete or not at all, and never a pickle."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from inheritune.data.order import ORDER_VERSION
from inheritune.errors import CheckpointError
from inheritune.system.files import new_directory, write_errors, write_json
from inheritune.system.processes import ALONE, Processes
from inheritune.training.checkpoint_files import (
    BROKEN,
    FORMAT,
    describe_file,
    files_of,
    is_whole,
    looks_whole,
    lost_rows,
    newest_first,
    pickles_in,
    point_latest,
    set_aside,
    set_aside_in,
    verify_checkpoint,
)
from inheritune.training.fsdp import shards_of
from inheritune.training.sharded_safetensors import SavedTensors, file_name, write_pieces
from inheritune.training.training_inputs import TrainingInputs


@dataclass(frozen=True)
class Position:
    """The place that a training has reached; with the recipe, all that is needed to go on."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0  # seconds of training before this point, over all restarts
    skipped: int = 0  # steps without an update, for a value that was not finite
    skips_in_a_row: int = 0  # the newest of them, without an update in between


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    inputs: TrainingInputs,
    keep: int,
    processes: Processes = ALONE,
    *,
    val_losses: Mapping[int, float | None] = MappingProxyType({}),
    rows: Mapping[str, Any] | None = None,
) -> Path:
    """Publish weights, moments and position by one rename; then drop checkpoints beyond `keep`.

    Every process writes what it holds; it is done in all of them, or fails in all of them.

    Args:
        keep: Number of newest checkpoints to leave; damaged ones are not counted.
        val_losses: Nats per token by step; the checkpoint of the lowest one is left as well.
        rows: Size and digest of metrics.jsonl, from `Metrics.synced`; used in process 0 only.

    Returns:
        The checkpoint; one of this step that is there already, and whole, is left as it is.

    Raises:
        MachineError: The disk is full or gone; earlier checkpoints are untouched.
    """
    final = folder / f"step-{position.step:08d}"
    if processes.on_main(lambda: _is_there(folder, final)):
        return final
    trainer = {"position": asdict(position), **inputs.record(), "order": ORDER_VERSION}
    trainer |= {} if rows is None else {"metrics": dict(rows)}
    writers = shards_of(model)  # the others hold copies
    with ExitStack() as stack:
        # --- every writer's part, in a staging directory that all of them see ---
        staging = folder / processes.on_main(lambda: stack.enter_context(new_directory(final)).name)

        def write() -> dict[str, dict[str, Any]]:
            if processes.rank >= writers:
                return {}
            with write_errors(final):  # of this process's machine: the first one may have room
                return _write_part(staging, model, optimizer, processes.rank, writers)

        digests = {k: v for part in processes.on_all(write) for k, v in part.items()}

        # --- the manifest last, then the rename: nothing is seen before all is there ---
        def publish() -> None:
            write_json(staging / "trainer.json", trainer)
            digests["trainer.json"] = describe_file(staging / "trainer.json")
            manifest = {"format": FORMAT, "writers": writers, "files": digests}
            write_json(staging / "manifest.json", manifest)
            stack.close()
            point_latest(folder, final.name)

        processes.on_main(publish)
    processes.on_main(lambda: _drop_old(folder, final, keep, val_losses))
    return final


def _is_there(folder: Path, final: Path) -> bool:
    if final.exists():
        if is_whole(final):
            return True
        shutil.rmtree(final)  # it was passed over when this training was continued
    return False


def _write_part(
    staging: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, writers: int
) -> dict[str, dict[str, Any]]:
    """Write what this process holds; return the digests of its files, by name."""
    parts = {"model": _weights(model), "optimizer": _moments(model, optimizer)}
    paths = [staging / file_name(kind, rank, writers) for kind in parts]
    for path, tensors in zip(paths, parts.values(), strict=True):
        write_pieces(tensors, path, rank)
    return {path.name: describe_file(path) for path in paths}


def _drop_old(folder: Path, final: Path, keep: int, val_losses: Mapping[int, float | None]) -> None:
    saved = newest_first(folder)
    # Incomplete ones, and any newer than the one just saved, are damaged: counted towards `keep`,
    # they would crowd out what is whole.
    whole = [c for c in saved if c == final or (c.name < final.name and looks_whole(c))]
    measured = {c: val_losses.get(int(c.name.removeprefix("step-"))) for c in whole}
    losses = {c: val_loss for c, val_loss in measured.items() if val_loss is not None}
    best = min(losses, key=lambda c: losses[c], default=final)
    for old in saved:
        if old not in {*whole[:keep], best}:
            shutil.rmtree(old)
    for old in set_aside_in(folder):
        shutil.rmtree(old)


def load_newest(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: TrainingInputs,
    processes: Processes = ALONE,
    *,
    named: Path | None = None,
) -> tuple[Position, list[str]]:
    """Load the newest checkpoint that is whole, or the one named, into a model and its optimizer.

    Later checkpoints, passed over or not named, are set aside, and deleted when a newer one is
    published. `latest` names what was loaded.

    Args:
        model: Overwritten in place; sharded over any number of processes, or whole.
        named: The one checkpoint to load, in ``folder``; no other takes its place.

    Returns:
        The position to go on from (the beginning when nothing was ever saved), and sentences about
        checkpoints that were passed over and inputs that differ.

    Raises:
        CheckpointError: There are checkpoints and none is whole, or the one named is not.
        RecipeError: The newest one, or the one named, belongs to other inputs, or was trained in
            another precision.
    """
    choice = processes.on_main(lambda: _choose(folder, inputs, named))
    if choice["name"] is None:
        return Position(), choice["notes"]
    checkpoint = folder / choice["name"]
    processes.on_all(lambda: _load(checkpoint, model, optimizer))
    more = processes.on_main(lambda: _set_later_aside(checkpoint, named is not None))
    return Position(**choice["position"]), choice["notes"] + more


def _set_later_aside(checkpoint: Path, named: bool) -> list[str]:
    """Set later checkpoints aside and point `latest` at the one just loaded."""
    names = set_aside(checkpoint)
    point_latest(checkpoint.parent, checkpoint.name)
    if not named:  # each was passed over, and that is said
        return []
    return [f"set aside {name}: {checkpoint.name} was named to go on from" for name in names]


def load_moments(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes = ALONE,
    name_of: Callable[[str], str] = str,
) -> None:
    """Take over AdamW's moments from the checkpoint of a smaller model's training.

    Weights that are new in this model begin with none.

    Args:
        name_of: Gives the name in this model of a weight of the smaller one.

    Raises:
        CheckpointError: It is not whole, or has moments of weights that this model does not have.
    """
    params = {name for name, _ in model.named_parameters()}

    def load() -> None:
        if processes.rank == 0:
            verify_checkpoint(checkpoint)
        saved = SavedTensors(files_of(checkpoint, "optimizer"))
        if unknown := {name_of(name.partition(".")[2]) for name in saved.names} - params:
            raise CheckpointError(
                f"{checkpoint} holds moments of {min(unknown)}, which is not here."
            )
        _put_moments(model, optimizer, saved, name_of)

    processes.on_all(load)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Overwrite a whole model with the weights of the newest checkpoint, which must be whole."""
    checkpoint = newest_first(folder)[0]
    verify_checkpoint(checkpoint)
    _put_weights(model, SavedTensors(files_of(checkpoint, "model")))


def _choose(folder: Path, inputs: TrainingInputs, named: Path | None) -> dict[str, Any]:
    """Choose the checkpoint to load: its name, None where there is none; position and notes."""
    notes: list[str] = []
    rowless: list[Path] = []  # those that lack nothing but their rows
    for checkpoint in newest_first(folder) if named is None else [folder / named.name]:
        try:
            trainer = verify_checkpoint(checkpoint)
            position = Position(**trainer["position"])
            dict(trainer["inputs"]), dict(trainer.get("warn", {}))
        except BROKEN as error:
            if named is not None:
                raise CheckpointError(
                    f"cannot go on from {checkpoint}: {error}",
                    "Name another one, or leave --from out for the newest that is whole.",
                ) from error
            notes.append(f"passed over {checkpoint.name}: {error}")
            continue
        if lost := lost_rows(folder.parent / "metrics.jsonl", trainer):
            notes.append(f"{'passed over ' * (named is None)}{checkpoint.name}: {lost}")
            if named is None:  # the steps since the one before are taken again, with their rows
                rowless.append(checkpoint)
                continue
        notes += pickles_in(checkpoint)
        notes += inputs.compare(checkpoint, trainer)
        return {"name": checkpoint.name, "position": asdict(position), "notes": notes}
    if rowless:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {notes[0].rstrip('.')}.",
            "Put metrics.jsonl back from a copy; or go on without these rows, and without their "
            f"validations and FLOPs in the result: --from {rowless[0]}",
        )
    if notes:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {notes[0]}.",
            f"To train from the start, remove {folder}.",
        )
    return {"name": None, "notes": []}


def _load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    _put_weights(model, SavedTensors(files_of(checkpoint, "model")))
    _put_moments(model, optimizer, SavedTensors(files_of(checkpoint, "optimizer")))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    # named_parameters and named_buffers list a tied tensor once; buffers that a module does not
    # persist (rotary tables) are rebuilt with the model and stay out, as in state_dict.
    persistent = model.state_dict()
    return dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name in persistent
    }


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": value
        for name, param in model.named_parameters()
        for key, value in optimizer.state.get(param, {}).items()
    }


def _put_weights(model: nn.Module, saved: SavedTensors) -> None:
    weights = _weights(model)
    if missing := sorted(weights.keys() ^ set(saved.names)):
        raise CheckpointError(f"checkpoint and model do not both have {missing[0]}.")
    for name, tensor in weights.items():
        saved.read_into(name, tensor)


def _put_moments(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: SavedTensors,
    name_of: Callable[[str], str] = str,
) -> None:
    params = dict(model.named_parameters())
    for full_name in saved.names:
        key, _, name = full_name.partition(".")
        param = params[name_of(name)]
        if not param.requires_grad:  # trained in the smaller model, and frozen in this one
            continue
        if key == "step":
            # AdamW keeps `step` on the CPU unless its kernels are fused on a GPU.
            state = torch.zeros((), device=param.device if param.is_cuda else "cpu")
        else:
            state = torch.zeros_like(param, requires_grad=False)
        saved.read_into(full_name, state)
        optimizer.state[param][key] = state
