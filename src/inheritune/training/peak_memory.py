"""The most memory that a training took: on the GPU, or of this process."""

import sys
from contextlib import suppress
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["forget_peak", "peak_bytes"]

_PROC = Path("/proc/self")


def forget_peak() -> None:
    """Count from here on, as far as the system can: what is in use now stays the least.

    Where it cannot (no ``/proc``), the peak remains that of the whole process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")  # proc(5): resets the peak resident set


def peak_bytes() -> int | None:
    """Bytes at the peak since `forget_peak`: allocated on this process's GPU, or resident.

    None where neither is known.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, ValueError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
