"""Write files and directories whole or not at all, and hash files.

A write goes to a staging file or directory under a random name beside its place, is synced, and
gets there by one rename: a reader meets the old state or the new one, whatever happens. A staging
name is locked while its writer lives; what a killed writer left is removed by the next one.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from inheritune.errors import MachineError, RecipeError, escape, reason_of

try:
    import fcntl
except ImportError:  # Windows: what a killed writer left is then not removed
    fcntl = None  # type: ignore[assignment]


# Read once: the system tells it only by setting it, for every thread of the process.
UMASK = os.umask(0o077)
os.umask(UMASK)

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_PIECE = 2**20
_WATCHED: list[Path] = []  # directories of `watch_for_removal`


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
def watch_for_removal(root: Path) -> Iterator[None]:
    """While the block runs, refuse to write below a directory that somebody has removed meanwhile.

    Without this, `make_directory` would make it again, with the little that is written later.
    """
    real_root = Path(os.path.realpath(root))
    _WATCHED.append(real_root)
    try:
        yield
    finally:
        _WATCHED.remove(real_root)


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they are missing.

    Raises:
        MachineError: A directory of `watch_for_removal` was removed, or the system refuses.
    """
    refuse_removed(path)
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def refuse_removed(path: Path) -> None:
    """Raise MachineError for what is below a directory of `watch_for_removal` that was removed."""
    for root in _WATCHED:
        if not root.exists() and Path(os.path.realpath(path)).is_relative_to(root):
            raise MachineError(
                f"{escape(root, 160)} was removed while it was written to.",
                "Run the same command to begin anew.",
            )


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
    make_directory(out.parent)
    with write_errors(out), _staging(out, _create_directory) as staging:
        yield staging
        staging.chmod(0o777 & ~UMASK)
        old = staging.with_name(f"{staging.name}-old")
        if replace and out.exists():
            out.rename(old)
        move_directory(staging, out)
        _remove(old)


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


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made where it is missing; a link is not followed.

    Raises:
        MachineError: A directory of `watch_for_removal` was removed, the system refuses, or a link
            is in the file's place.
    """
    refuse_removed(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with (
        write_errors(path),
        os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", newline="\n") as file,
    ):
        file.write(text)


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

# `-old` is what a directory that is being replaced is called meanwhile.
_STAGING_NAME = re.compile(r"\..{1,40}\.tmp-[0-9a-f]{8}(-old)?", re.DOTALL)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Make a directory beside ``path`` (mode 0700) that is there for this block alone.

    One that a killed process left is removed by the next call, or by `sweep_directory`.

    Raises:
        OSError: The system refuses.
    """
    with _staging(path, _create_directory) as scratch:
        yield scratch


def sweep_directory(directory: Path, prefix: str = ".") -> None:
    """Remove what killed writers left directly in a directory; what a living one writes stays."""
    for path in list(directory.iterdir()):
        if path.name.startswith(prefix) and _STAGING_NAME.fullmatch(path.name):
            with suppress(OSError):  # somebody else's
                # A living writer holds the lock, and a killed one let it go.
                lock = _locked(path, wait=False)
                if lock is not None:
                    _remove(path)
                    os.close(lock)


@contextmanager
def _staging(path: Path, create: Callable[[Path], int | None]) -> Iterator[Path]:
    """Create a locked staging file or directory beside ``path``, and remove it at the end."""
    prefix = f".{path.name[:40]}.tmp-"
    sweep_directory(path.parent, prefix)
    while True:
        staged = path.with_name(prefix + secrets.token_hex(4))
        # Before it is locked, another writer may take it for abandoned: then a new one is made.
        with suppress(FileExistsError):
            lock = create(staged)
            if staged.exists():
                break
    try:
        yield staged
    finally:
        _remove(staged)  # where it was not moved to its place
        if lock is not None:
            os.close(lock)


def _create_file(path: Path) -> int | None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    return _lock_descriptor(descriptor)


def _create_directory(path: Path) -> int | None:
    path.mkdir(0o700)
    with suppress(FileNotFoundError):  # taken for abandoned
        return _locked(path)
    return None


def _locked(path: Path, *, wait: bool = True) -> int | None:
    """Lock a file or directory until the descriptor that is returned is closed."""
    if fcntl is None:
        return None
    # O_NONBLOCK: a pipe of such a name would be waited for.
    return _lock_descriptor(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), wait=wait)


def _lock_descriptor(descriptor: int, *, wait: bool = True) -> int | None:
    if fcntl is not None:
        with suppress(OSError):  # a living writer's, or a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return descriptor
    os.close(descriptor)
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
    reason = reason_of(error)
    full = getattr(error, "errno", None) in _DISK_FULL or "no space" in reason
    return MachineError(
        f"cannot write {escape(path, 160)}: {reason}.",
        "Free some space, or name another directory."
        if full
        else "Check that its directory can be written to, or name another one.",
    )
