"""A reference that one run has trained, kept where runs that want the same one find it."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inheritune.data.tokens import canonical_digest
from inheritune.errors import DataError, MachineError
from inheritune.system.files import (
    published,
    read_json_file,
    refused_by_system,
    sync_file,
    write_json,
)
from inheritune.system.reading import escape

__all__ = ["is_kept", "keep", "kept_path", "only_trainer"]

_FORMAT = 1
_RECORD = "made_from.json"  # beside the model's files


def kept_path(folder: Path, name: str, made_from: Mapping[str, Any]) -> Path:
    """Where a reference is kept, or would be.

    Args:
        folder: Of all that are kept.
        name: Begins its directory's name.
        made_from: All that decides its weights, as JSON values; a digest of it ends the name.
    """
    return folder / f"{name}-{canonical_digest(made_from)[:8]}"


def is_kept(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a reference is there.

    Args:
        path: See `kept_path`.
        made_from: As for `kept_path`.

    Raises:
        DataError: There is something else.
    """
    if not path.exists():
        return False
    record = read_json_file(path / _RECORD)
    if not isinstance(record, dict) or record.get("made_from") != made_from:
        raise DataError(
            f"{escape(path)} does not hold the reference that this recipe asks for.",
            "Name another directory in reference.train.keep_in.",
        )
    return True


def keep(model: Path, path: Path, made_from: Mapping[str, Any], run: str) -> None:
    """Keep a copy of a trained reference; it is there completely or not at all.

    Args:
        model: Its directory, with ``training.json``.
        path: See `kept_path`; nothing is there.
        made_from: As for `kept_path`.
        run: Name of the run that trained it.

    Raises:
        MachineError: The disk is full, read-only or broken.
    """
    with published(path) as staging:
        for source in sorted(model.rglob("*")):
            copy = staging / source.relative_to(model)
            if source.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(source, copy)
                sync_file(copy)
        record = {"format": _FORMAT, "run": run, "made_from": dict(made_from)}
        write_json(staging / _RECORD, record)


@contextmanager
def only_trainer(path: Path) -> Iterator[None]:
    """Be the one run that trains a reference; the system frees this when the process ends.

    Args:
        path: Where it will be kept.

    Raises:
        MachineError: Another run trains it; its process and machine are named.
    """
    holder = path.with_name(f".{path.name}.lock.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MachineError(
            f"another run trains this reference for {escape(path)}: {_named(holder)}.",
            "Wait for it to end: it is then taken from there.",
        ) from error
    except OSError as error:
        refused_by_system(path, error)
    try:
        write_json(holder, {"pid": os.getpid(), "machine": platform.node()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _named(holder: Path) -> str:
    try:
        found = read_json_file(holder)
        return f"process {int(found['pid'])} on {escape(found['machine'], 60)}"
    except (DataError, KeyError, TypeError, ValueError):
        return "process unknown"  # it has the lock and is about to write who it is
