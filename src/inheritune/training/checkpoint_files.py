"""Prove that a checkpoint's files are there as they were written; name, link and set aside them."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from inheritune.data.order import ORDER_VERSION
from inheritune.errors import CheckpointError, DataError, MachineError
from inheritune.system.files import new_directory, sha256, sync_file, write_bytes
from inheritune.system.strict_json import read_json
from inheritune.training.sharded_safetensors import SavedTensors, file_name

FORMAT = 1
_LATEST = "latest"
# What reading a damaged checkpoint can raise.
BROKEN = (
    *(CheckpointError, DataError, SafetensorError, OSError),
    *(ValueError, KeyError, TypeError, AttributeError),
)

_ASIDE = "set-aside-"
# A copy that somebody made, such as step-00000012-backup, is none of ours.
CHECKPOINT_NAME = re.compile(r"step-[0-9]{8,}")
_PICKLES = {".pt", ".pth", ".pkl", ".ckpt", ".bin"}


def newest_first(folder: Path) -> list[Path]:
    """List the checkpoints of a training, the latest step first."""
    named = (path for path in folder.glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name))
    return sorted((path for path in named if path.is_dir()), reverse=True)


def micro_batch_before(folder: Path, named: Path | None = None) -> int | None:
    """Return the micro-batch that ``auto`` chose for the training that is continued.

    None where the recipe stated it, or where there is no checkpoint yet.

    Args:
        named: Checkpoint that the training is continued from; None: the newest readable one.
    """
    for checkpoint in newest_first(folder) if named is None else [named]:
        try:
            chosen = read_json(checkpoint / "trainer.json")["settings"].get("micro_batch")
        except BROKEN:  # it will be passed over
            continue
        return chosen if type(chosen) is int and chosen > 0 else None
    return None


def point_latest(folder: Path, name: str) -> None:
    """Name the newest checkpoint in the file `latest`, for people and scripts.

    It is a hint: no training reads it, and a failure to write it is ignored.
    """
    with suppress(MachineError):
        write_bytes(folder / _LATEST, f"{name}\n".encode())


def keep_snapshot(checkpoints: Path, folder: Path, step: int) -> None:
    """Keep the newest checkpoint of a training, by links to its files: it takes no space twice.

    Nothing is done if the newest checkpoint is not of this step.
    """
    newest = next(iter(newest_first(checkpoints)), None)
    snapshot = folder / f"{step:010d}"
    if newest is None or int(newest.name.removeprefix("step-")) != step or snapshot.exists():
        return
    with new_directory(snapshot) as staging:
        (staging / newest.name).mkdir()
        for file in newest.iterdir():
            try:
                os.link(file, staging / newest.name / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, staging / newest.name / file.name)
                sync_file(staging / newest.name / file.name)


def snapshots_in(folder: Path) -> dict[int, Path]:
    """Find the snapshots of a training by their steps, in order; a user's copies are left out."""
    return {int(path.name): path for path in sorted(folder.glob("[0-9]*")) if path.name.isdecimal()}


def drop_later_snapshots(folder: Path, step: int) -> None:
    """Remove the snapshots of steps beyond the one that a training goes on from."""
    for later in [path for number, path in snapshots_in(folder).items() if number > step]:
        shutil.rmtree(later)


def set_aside(checkpoint: Path) -> list[str]:
    """Rename the checkpoints after the one that a training goes on from; return their old names.

    They are damaged, or belong to a branch that was left; they stay until a newer one is published.
    """
    later = [c for c in newest_first(checkpoint.parent) if c.name > checkpoint.name]
    for old in later:
        aside = old.with_name(f"{_ASIDE}{old.name}")
        if aside.exists():  # set aside twice: the older one's branch was left long ago
            shutil.rmtree(aside)
        old.rename(aside)
    return [old.name for old in later]


def set_aside_in(folder: Path) -> list[Path]:
    """List the checkpoints that `set_aside` renamed."""
    return sorted(folder.glob(f"{_ASIDE}step-*"))


def files_of(checkpoint: Path, kind: str) -> list[Path]:
    """List the files of one kind, ``"model"`` or ``"optimizer"``: one of each writer."""
    return sorted(checkpoint.glob(f"{kind}*.safetensors"))


def pickles_in(checkpoint: Path) -> list[str]:
    """Return a sentence for each file that looks like a pickle; none is read."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.suffix in _PICKLES)
    return [f"ignored {name} in {checkpoint.name}: nothing is unpickled" for name in names]


def describe_file(path: Path) -> dict[str, Any]:
    """Sync a file to the disk, and return its entry in the manifest."""
    sync_file(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Prove that a checkpoint is whole, before anything of it is loaded; return its trainer.json.

    Raises:
        CheckpointError: A file is missing, was added, or is not what was written. `BROKEN` lists
            what else a damaged checkpoint may raise.
    """
    manifest = read_json(checkpoint / "manifest.json")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{checkpoint.name} has format {manifest['format']}, not {FORMAT}.")
    # Regular files only: reading a pipe would wait for a writer.
    present = {path.name for path in checkpoint.iterdir() if path.is_file()} - {"manifest.json"}
    listed, writers = manifest["files"], int(manifest.get("writers", 1))
    if not 1 <= writers <= len(listed):
        raise CheckpointError(f"its manifest names {writers} writers of {len(listed)} files.")
    needed = {file_name(k, n, writers) for k in ("model", "optimizer") for n in range(writers)}
    if (needed | {"trainer.json"}) - set(listed):
        raise CheckpointError("its manifest is incomplete.")
    if missing := set(listed) - present:
        raise CheckpointError(f"{sorted(missing)[0]} is missing.")
    # A reader that joins all files of a kind would take its rows for ours.
    if extra := {name for name in present - set(listed) if name.endswith(".safetensors")}:
        raise CheckpointError(f"{sorted(extra)[0]} was not written with it.")
    if any(Path(name).name != name for name in listed):
        raise CheckpointError("its manifest names files elsewhere.")
    # Sizes first: a file of a terabyte is not hashed to find out that it is not ours.
    for name, expected in listed.items():
        if (size := (checkpoint / name).stat().st_size) != expected["bytes"]:
            raise CheckpointError(f"{name} has {size:,} bytes, {expected['bytes']:,} were written.")
    for name, expected in listed.items():
        if sha256(checkpoint / name) != expected["sha256"]:
            raise CheckpointError(f"{name} is not what was written.")
    for kind in ("model", "optimizer"):
        SavedTensors(files_of(checkpoint, kind))  # every row is there, once
    trainer: dict[str, Any] = read_json(checkpoint / "trainer.json")
    if trainer.get("order", ORDER_VERSION) != ORDER_VERSION:
        raise CheckpointError(f"it was made in order {trainer['order']}, not {ORDER_VERSION}.")
    return trainer


def lost_rows(metrics: Path, trainer: Mapping[str, Any]) -> str | None:
    """Say which of the rows that were written before a checkpoint are missing or changed.

    Args:
        metrics: The training's ``metrics.jsonl``.
        trainer: The checkpoint's trainer.json; version 0.1.0 kept no digest of the rows in it.

    Returns:
        None where all of them are there.
    """
    if (rows := trainer.get("metrics")) is None:
        return None
    size = metrics.stat().st_size if metrics.is_file() else 0
    if size < rows["bytes"]:
        return f"metrics.jsonl has {size:,} bytes of the {rows['bytes']:,} written before it"
    with metrics.open("rb") as file:
        digest = hashlib.sha256(file.read(rows["bytes"])).hexdigest()
    return None if digest == rows["sha256"] else "metrics.jsonl is not what was written before it"


def is_whole(checkpoint: Path) -> bool:
    """Return whether `verify_checkpoint` finds the checkpoint whole."""
    try:
        verify_checkpoint(checkpoint)
    except BROKEN:
        return False
    return True


def looks_whole(checkpoint: Path) -> bool:
    """Return whether all files of the manifest are there in full size.

    Contents are not read: this is asked at every save, where `is_whole` would read gigabytes.
    """
    try:
        files = read_json(checkpoint / "manifest.json")["files"]
        sizes = {name: (checkpoint / name).stat().st_size for name in files}
        return bool(files) and all(size == files[name]["bytes"] for name, size in sizes.items())
    except BROKEN:
        return False
