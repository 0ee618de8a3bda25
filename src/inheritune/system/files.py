"""Write files and directories whole or not at all, lock what one process may write, hash files.

A write goes to a staging file or directory under a random name beside its place, is synced, and
gets there by one rename: a reader meets the old state or the new one, whatever happens. A staging
name is locked while its writer lives; what a killed writer left is removed by the next one.
"""

import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from inheritune.errors import DataError, MachineError, RecipeError, escape
from inheritune.system.strict_json import read_json

try:
    import fcntl
except ImportError:  # Windows: what a killed writer left is then not removed
    fcntl = None  # type: ignore[assignment]


# Read once: the system tells it only by setting it, for every thread of the process.
UMASK = os.umask(0o077)
os.umask(UMASK)

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RETRY_S = 0.2  # between two attempts to get a lock
_PIECE = 2**20


# --- directories ---


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
def new_directory(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Make a directory that appears complete, when the block ends, or not at all.

    Args:
        out: Its place; missing parents are made.
        replace: Whether it takes the place of a directory that is there.

    Yields:
        An empty staging directory beside ``out``, for the block to fill. Files in it must be synced
        by whoever writes them, with `write_bytes` or `sync_file`.

    Raises:
        RecipeError: ``out`` is already used, and is not to be replaced.
        MachineError: The disk is full, read-only or broken; the staging directory is gone.
    """
    out = Path(os.path.realpath(out))
    if not replace:
        refuse_used_directory(out)
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _staging(out, _create_directory) as staging:
            yield staging
            staging.chmod(0o777 & ~UMASK)
            old = staging.with_name(f"{staging.name}-old")
            if replace and out.exists():
                out.rename(old)
            move_directory(staging, out)
            shutil.rmtree(old, ignore_errors=True)


def move_directory(staging: Path, out: Path) -> None:
    """Sync a directory and those in it, and move it to its place by one rename.

    Args:
        staging: On the same file system; its files are synced already.
        out: Missing, or an empty directory.

    Raises:
        OSError: The system refuses.
    """
    for directory in {staging, *(path for path in staging.rglob("*") if path.is_dir())}:
        sync_directory(directory)
    staging.rename(out)
    sync_directory(out.parent)


# --- files ---


def write_json(path: Path, value: Any, *, infinity: bool = False) -> None:
    """Write JSON as `write_bytes` does. The bytes depend on the value alone.

    Args:
        path: In an existing directory.
        value: JSON values; mappings keep their order.
        infinity: Write a bare ``Infinity``, as configs of models may hold it.

    Raises:
        MachineError: The system refuses to write; the old file stays.
        ValueError: A number is NaN or infinite, which JSON cannot say.
    """
    data = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=infinity) + "\n"
    write_bytes(path, data.encode())


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that a reader meets the old one or the new one, and wait for the disk.

    The file's directory exists. A link in its place is replaced, not followed.

    Raises:
        MachineError: The system refuses to write; the old file stays.
    """
    with write_errors(path), _staging(path, _create_file) as staged:
        with staged.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Give a file that a library wrote the mode of our files, and wait until it is on the disk."""
    path.chmod(0o666 & ~UMASK)  # safetensors leaves 0600
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the renames inside a directory durable.

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


def sha256(path: Path, check: Callable[[], object] = lambda: None) -> str:
    """Compute the SHA-256 of a file, as 64 hexadecimal digits.

    Args:
        path: A regular file of any size.
        check: Called before every mebibyte; may raise to end it.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            check()
            digest.update(piece)
    return digest.hexdigest()


# --- staging ---


@contextmanager
def _staging(path: Path, create: Callable[[Path], int | None]) -> Iterator[Path]:
    """Create a staging file or directory beside ``path``, and remove it if the block fails."""
    prefix = f".{path.name[:40]}.tmp-"
    _remove_abandoned(path.parent, prefix)
    while True:
        staged = path.with_name(prefix + secrets.token_hex(4))
        lock = create(staged)
        if staged.exists():  # else another writer took it for abandoned before it was locked
            break
    try:
        yield staged
    except BaseException:
        _remove(staged)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _create_file(path: Path) -> int | None:
    return _locked(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _create_directory(path: Path) -> int | None:
    path.mkdir(0o700)
    return None if fcntl is None else _locked(os.open(path, os.O_RDONLY))


def _locked(descriptor: int, *, wait: bool = True) -> int | None:
    """Lock an open file or directory until it is closed; close it where that is not possible."""
    if fcntl is not None:
        with suppress(OSError):  # a living writer's, or a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return descriptor
    os.close(descriptor)
    return None


def _remove_abandoned(directory: Path, prefix: str) -> None:
    for stale in [path for path in directory.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):  # somebody else's
            # A living writer holds the lock, and a killed one let it go.
            lock = None if fcntl is None else _locked(os.open(stale, os.O_RDONLY), wait=False)
            if lock is not None:
                _remove(stale)
                os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


# --- locks ---


@contextmanager
def locked(
    path: Path,
    busy: str,
    hint: str = "Wait for it to end, or stop it.",
    wait: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold a lock while the block runs; the system frees it when the process ends, however.

    Args:
        path: The lock's file; its directory is made where missing. While the lock is held,
            ``<path>.json`` names the holder.
        busy: Says what another holder does, such as ``"another process works on runs/x"``.
        hint: Says what to do about it.
        wait: Called several times a second while another process holds the lock; true: go on
            waiting. It may raise.

    Raises:
        MachineError: Another process holds it; its number and machine are named. Or the system
            refuses.
    """
    holder = path.with_name(f"{path.name}.json")
    lock = FileLock(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout as error:
                if not wait():
                    raise MachineError(f"{busy}: {_name_of(holder)}.", hint) from error
            time.sleep(_RETRY_S)
    try:
        write_json(holder, {"pid": os.getpid(), "machine": platform.node()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def holder_has_ended(path: Path) -> bool:
    """Whether a lock names a process of this machine that is no more. Touches no lock."""
    try:
        record = read_json(path.with_name(f"{path.name}.json"))
        if os.name != "posix" or record["machine"] != platform.node():
            return False
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return True
    except (DataError, OSError, KeyError, TypeError, ValueError, OverflowError):
        pass
    return False


def _name_of(holder: Path) -> str:
    try:
        record = read_json(holder)
        return f"process {int(record['pid'])} on {escape(record['machine'], 60)}"
    except (DataError, KeyError, TypeError, ValueError):
        return "process unknown"  # it has the lock and is about to write who it is


# --- errors ---


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into our own error.

    Args:
        path: What is written, for the message.

    Raises:
        MachineError: The disk is full, read-only or broken.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the library's word for a full disk
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> MachineError:
    """Return the error that says what the system refused to write, and what can be done."""
    reason = str(getattr(error, "strerror", None) or error).lower()
    full = getattr(error, "errno", None) in _DISK_FULL or "no space" in reason
    return MachineError(
        f"cannot write {escape(path, 160)}: {reason}.",
        "Free some space, or name another directory."
        if full
        else "Check that its directory can be written to, or name another one.",
    )
