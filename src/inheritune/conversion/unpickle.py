"""Unpickle PyTorch checkpoints: plain tensors by name, and nothing else.

Runs only in a process that `confinement` has confined. Nothing else in the project reads a pickle.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.conversion.confinement import Refused
from inheritune.errors import SourceError, escape
from inheritune.model_files.safetensors import torch_name
from inheritune.model_files.wrappers import refuse_two_names, unwrapped

if TYPE_CHECKING:
    from torch import Tensor


# The dtypes of safetensors by torch's names.
_DTYPES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"} | {
    torch_name(dtype): dtype
    for dtype in (
        *("BF16", "BOOL", "C64", "F16", "F32", "F64"),
        *("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"),
    )
}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_AGAIN = "Download it again."
_MAX_PICKLE = 64 * 2**20  # data.pkl names tensors; their bytes are entries of their own


class Checkpoint:
    """The files of a checkpoint, one of them in memory at a time.

    Attributes:
        left_out: Reasons for leaving out what stands beside the weights, by name.
        unmapped: Names of the files in a format that cannot be mapped into memory.
        wrappers: Parts of names that wrappers had added, which were taken off.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.left_out: dict[str, str] = {}
        self.unmapped = [file.name for file in files if not _is_zip(file)]
        self.wrappers: dict[str, None] = {}
        self._loaded: tuple[Path, dict[str, Tensor]] | None = None

    def load(self, file: Path) -> dict[str, "Tensor"]:
        """Return the tensors of one of the files by name."""
        if self._loaded is None or self._loaded[0] != file:
            self._loaded = None  # freed before the next one comes
            tensors, others = _unwrap(_unpickle(file), file)
            self.left_out |= others
            names, wrappers = unwrapped(tensors, lightning=True)
            refuse_two_names(names, wrappers, file)
            tensors = {names[name]: tensor for name, tensor in tensors.items()}
            self.wrappers |= dict.fromkeys(wrappers)
            self._loaded = file, tensors
        return self._loaded[1]


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _refuse_packed(file: Path) -> None:
    """Refuse a zip that could grow in memory beyond its size on disk."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        reason = _first_line(str(error))
        raise SourceError(f"{file.name} is cut short or broken: {reason}.", _AGAIN) from error
    for entry in entries:
        name = escape(entry.filename)
        if "/code/" in entry.filename:  # of TorchScript, which torch refuses without reading it
            continue
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise SourceError(f"{file.name}: {name} is compressed; torch never does that.", _AGAIN)
        if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE:
            raise SourceError(
                f"{file.name}: {name} has {entry.file_size:,} bytes; a pickle of names has less "
                f"than {_MAX_PICKLE:,}.",
                _AGAIN,
            )


def _unpickle(file: Path) -> Any:
    import torch

    is_zip = _is_zip(file)
    if is_zip:
        _refuse_packed(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except (MemoryError, Refused):
        raise
    except Exception as error:
        text = str(error)
        if call := re.search(r"GLOBAL ([\w.]+)", text):
            raise SourceError(
                f"{file.name} calls {escape(call[1])} when it is read, and was refused: that would"
                " take full trust in whoever made it, which inheritune has in no one.",
                "Nothing of it was run. Use a safetensors version of the model.",
            ) from error
        if "TorchScript" in text:
            raise SourceError(
                f"{file.name} is a TorchScript program, not weights.",
                "Save its state_dict, and convert that.",
            ) from error
        if type(error).__name__ == "UnpicklingError":
            reason = text.rpartition("WeightsUnpickler error: ")[2]
            raise SourceError(
                f"{file.name} holds more than tensors, or is broken: {_first_line(reason)}.",
                "Save only its state_dict, or use a safetensors version of the model.",
            ) from error
        raise SourceError(
            f"{file.name} is cut short or broken: {_first_line(text) or type(error).__name__}.",
            _AGAIN,
        ) from error


def _first_line(text: str) -> str:
    return escape(text.strip().partition("\n")[0], 120).rstrip(".")


def _unwrap(value: Any, file: Path, depth: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors by name, and by name the reasons for leaving out other entries."""
    if not isinstance(value, Mapping) or not value:
        raise SourceError(f"{file.name} holds no tensors by name, but {_kind(value)}.")
    inner = [key for key in _WRAPPERS if isinstance(value.get(key), Mapping)]
    if len(inner) == 1 and depth < 3:
        reason = f"stands beside {inner[0]} in {file.name}"
        others = {escape(key): reason for key in value if key != inner[0]}
        tensors, more = _unwrap(value[inner[0]], file, depth + 1)
        return tensors, others | more
    for name, tensor in value.items():
        if not isinstance(name, str) or not name.isprintable() or name == "__metadata__":
            raise SourceError(f"{file.name} names a tensor {escape(repr(name))}.")
        if reason := _refusal(tensor):
            raise SourceError(f"{file.name}: {escape(name)} {reason}.")
    return {name: tensor.detach() for name, tensor in value.items()}, {}


def _refusal(value: Any) -> str:
    """Return why a value cannot be written as it is; empty for a plain tensor."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"is no tensor, but {_kind(value)}"
    if value.is_quantized:
        return "is quantised: convert the weights it was made from"
    if value.layout is not torch.strided or value.is_nested:
        return "is sparse: save it as a dense tensor"
    if value.device.type != "cpu":
        return "has no values, only a shape"
    if safetensors_dtype(value) is None:
        return f"is of {value.dtype}, which safetensors cannot hold"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "repeats the same memory: save a contiguous copy"
    return ""


def _kind(value: Any) -> str:
    return f"a value of type {escape(type(value).__name__)}"


def safetensors_dtype(tensor: "Tensor") -> str | None:
    """Return the safetensors dtype of a tensor, such as ``"BF16"``; None where there is none."""
    return _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
