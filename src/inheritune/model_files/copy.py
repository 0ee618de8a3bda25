"""Copy bytes between files, in the kernel where it can, and the side files of a model."""

import errno
import os
from io import FileIO
from pathlib import Path

from inheritune.errors import SourceError, reason_of
from inheritune.model_files.safe_path import safe_file

# Files that hold for any number of layers. Others (training arguments, cards, pickles, weights of
# other frameworks) describe the reference only.
_SIDE_FILES = (
    *("tokenizer*.json", "tokenizer*.model", "*.tiktoken", "*.spm", "spiece.model"),
    *("vocab*.json", "vocab*.txt", "vocab*.bpe", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "sentencepiece*.model", "chat_template*", "generation_config.json"),
    *("*processor_config.json", "additional_chat_templates/*.jinja", "*.py"),
    *("LICENSE*", "LICENCE*", "License*", "COPYING*", "NOTICE*", "Notice*", "USE_POLICY*"),
)
_KERNEL_CHUNK = 2**30
_CHUNK = 8 * 2**20
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
# Errors of a kernel or file system that cannot copy this way.
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


def open_source(path: Path) -> FileIO:
    """Open a file for reading, without a buffer; a pipe without a writer does not block."""
    try:
        return FileIO(path, opener=lambda p, flags: os.open(p, flags | _NONBLOCK))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {reason_of(error)}.") from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; a plain `os.write` may stop early."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def copy_range(path: Path, target: int, offset: int, size: int) -> None:
    """Copy a byte range of a file to the current position of an open one.

    The kernel copies without this process where it can.

    Args:
        target: Descriptor to write to.

    Raises:
        SourceError: The file ends before the range does.
    """
    end = offset + size
    with open_source(path) as file:
        source = file.fileno()
        if hasattr(os, "copy_file_range"):
            # 0 before the end: the file is shorter, or the file system cannot. Reading will tell.
            try:
                while count := os.copy_file_range(
                    source, target, min(_KERNEL_CHUNK, end - offset), offset
                ):
                    offset += count
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        while offset < end:
            os.lseek(source, offset, os.SEEK_SET)
            data = os.read(source, min(_CHUNK, end - offset))
            if not data:
                raise SourceError(
                    f"{path} ended at byte {offset:,} while it was read; {end:,} were expected.",
                    "Something else changes the file; try again when it is complete.",
                )
            write_all(target, data)
            offset += len(data)


def side_files(directory: Path) -> list[Path]:
    """List the files that belong to a model besides config and weights, sorted by name.

    These are tokenizer, generation config, chat templates, licence and remote code, but not the
    model card, which describes the reference. Links that leave the directory are refused.
    """
    matches = {path for pattern in _SIDE_FILES for path in directory.glob(pattern)}
    names = sorted(p.relative_to(directory).as_posix() for p in matches if not p.is_dir())
    return [safe_file(directory, name) for name in names]


def copy_side_files(source: Path, target: Path) -> None:
    """Copy the side files of a model directory into another one, byte for byte; none is parsed."""
    for path in side_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        copy.unlink(missing_ok=True)
        with copy.open("xb", buffering=0) as new:
            copy_range(path, new.fileno(), 0, path.stat().st_size)
            os.fsync(new.fileno())
