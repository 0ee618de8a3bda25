"""Copy bytes between files, in the kernel where it can, and the side files of a model."""

import errno
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from io import FileIO
from pathlib import Path

from inheritune.errors import SourceError, reason_of
from inheritune.model_files.safe_path import safe_file

# What a model of fewer layers does not take over; all else does, since tokenizers come under many
# names (tiktoken.model, tekken.json, tokenizer.jsonl, rwkv_vocab_v20230424.txt). In lower case.
_LEFT_BEHIND = (
    # Weights of any framework, their indices, and archives.
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.distcp"),
    *("*.h5", "*.hdf5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel"),
    *("*.gguf", "*.npy", "*.npz", "*.index.json", "adapter_*", "consolidated*", "*.parquet"),
    *("*.tar*", "*.zip", "*.gz", "*.xz", "*.zst"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quant_state.json"),
    # The config, which is edited; states and records of a training.
    *("config.json", "trainer_state.json", "*_results.json", "*.log", "*tfevents*"),
    *("inherit.json", "convert.json", "training.json", "trainer.json", "made_from.json"),
    *("manifest.json", "run.json", "result.json", "sha256sums", "zero_to_fp32.py", "latest"),
    # Cards and their pictures, which describe the reference only.
    *("*.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.pdf", "*.mp4", "*.ipynb"),
)
_LICENCES = ("licen[cs]e*", "copying*", "notice*", "use_policy*")
_TEMPLATES = "additional_chat_templates"
MAX_SIDE_BYTES = 64 * 2**20  # no known model has a larger tokenizer
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


def is_side_file(name: str) -> bool:
    """Tell by its name whether a file of a model holds for any number of layers.

    That is so unless it is known for something else: weights of any framework, states of a
    training, the model card. Of folders only that of chat templates is looked into.
    """
    folder, _, file = name.rpartition("/")
    if not file or file.startswith(".") or folder not in ("", _TEMPLATES):
        return False
    if folder:
        return file.endswith(".jinja")
    known = partial(fnmatchcase, file.lower())
    return any(map(known, _LICENCES)) or not any(map(known, _LEFT_BEHIND))


def side_files(directory: Path) -> list[Path]:
    """List the files that belong to a model besides config and weights, sorted by name.

    These are tokenizer, generation config, chat templates, licence, remote code, and whatever else
    `is_side_file` takes and has at most 64 MiB. Links that leave the directory are refused.
    """
    paths = [*directory.iterdir(), *directory.glob(f"{_TEMPLATES}/*.jinja")]
    names = sorted(p.relative_to(directory).as_posix() for p in paths if not p.is_dir())
    files = [safe_file(directory, name) for name in names if is_side_file(name)]
    return [path for path in files if path.stat().st_size <= MAX_SIDE_BYTES]


def copy_side_files(source: Path, target: Path, files: Sequence[Path] | None = None) -> None:
    """Copy the side files of a model directory into another one, byte for byte; none is parsed.

    Args:
        files: Which of them; None: all.
    """
    for path in side_files(source) if files is None else files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        copy.unlink(missing_ok=True)
        with copy.open("xb", buffering=0) as new:
            copy_range(path, new.fileno(), 0, path.stat().st_size)
            os.fsync(new.fileno())
