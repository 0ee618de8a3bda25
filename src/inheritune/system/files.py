"""Files and directories that are there completely or not at all, whatever happens meanwhile."""

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from inheritune.errors import MachineError, RecipeError, escape

try:
    import fcntl
except ImportError:  # Windows: stale staging is then left to the user
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "disk_errors",
    "published",
    "refuse_used_directory",
    "refused_by_system",
    "sync_directory",
    "sync_file",
    "write_bytes",
    "write_json",
]


def refuse_used_directory(out: Path) -> None:
    """Refuse to write where something else already is.

    Raises:
        RecipeError: ``out`` is a file, a directory with something in it, or no possible name.
    """
    try:
        used = out.is_symlink() or out.exists()
        if out.is_dir():
            used = any(out.iterdir())
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot write to {escape(out, 120)}: {escape(error, 60)}.") from error
    if used:
        raise RecipeError(f"{out} already exists.", "Name a directory that does not exist yet.")


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Write a directory so that it is there completely or not at all.

    Yields a staging directory beside ``out``; it is synced and renamed when the block ends, removed
    when the block fails. What a killed writer left there is swept first.

    Raises:
        RecipeError: ``out`` is already used.
        MachineError: The disk is full, read-only or broken.
    """
    out = Path(os.path.realpath(out))
    refuse_used_directory(out)
    staging = lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{out.name[:40]}.tmp-"
        _sweep(out.parent, prefix)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        lock = _lock(staging)
        yield staging
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o777 & ~umask)
        for directory in {staging, *(p for p in staging.rglob("*") if p.is_dir())}:
            sync_directory(directory)
        staging.rename(out)
        sync_directory(out.parent)
    except BaseException:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        with disk_errors(out):
            raise
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Say in our own error what the disk refuses while something is written.

    Args:
        out: What it would become, for the message.

    Raises:
        MachineError: The disk is full, read-only or broken.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the library's word for a full disk
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise MachineError(
            f"cannot write {out}: {reason}.", "Free some space, or name another directory."
        ) from error


def _lock(directory: Path) -> int | None:
    if fcntl is None:
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path, prefix: str) -> None:
    for stale in [p for p in parent.iterdir() if p.name.startswith(prefix) and p.is_dir()]:
        with suppress(OSError):
            lock = _lock(stale)  # a living writer holds it, and a killed one let it go
            if lock is not None:
                shutil.rmtree(stale, ignore_errors=True)
                os.close(lock)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader meets the old file or the new one, whatever happens.

    The bytes depend on the value alone. The mode follows the umask.

    Args:
        path: In an existing directory.
        value: JSON values; mappings keep their order.

    Raises:
        MachineError: The system refuses to write; the old file stays.
        ValueError: A number is NaN or infinite, which JSON cannot say.
    """
    data = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, data.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as `write_json` does: a reader meets the old one or the new one.

    Raises:
        MachineError: The system refuses to write; the old file stays.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        refused_by_system(path, error)


def sync_file(path: Path) -> None:
    """Have what another library wrote reach the disk before anything points to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the renames inside a directory durable.

    Args:
        path: The directory that the renamed files are in.

    Raises:
        OSError: The system refuses.
    """
    # Windows cannot open a directory and needs no such call.
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refused_by_system(path: Path, error: OSError) -> NoReturn:
    """Say what the system refused, and what can be done about it.

    Raises:
        MachineError: Always.
    """
    reason = (error.strerror or str(error)).lower()
    way_out = "Check the permissions of its directory."
    if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}:
        way_out = "Free some space and run again."
    raise MachineError(f"cannot write {escape(path)}: {reason}.", way_out) from error
