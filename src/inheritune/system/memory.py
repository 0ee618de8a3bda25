"""Tell how much memory of this machine a program can take."""

import re
from pathlib import Path

_CGROUP = "/sys/fs/cgroup/memory"
# Of NVIDIA, of AMD, of Windows below Linux; without one, torch need not be imported to look.
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def free_memory() -> int | None:
    """Return the bytes that are free, within the limit of a container; None: not known here."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    if available is None:
        return None
    free = int(available[1]) * 1024
    limit, used = _text(f"{_CGROUP}.max").strip(), _text(f"{_CGROUP}.current").strip()
    if limit.isdecimal() and used.isdecimal():
        # File caches count as used, but are freed on demand.
        cached = re.search(r"^inactive_file (\d+)", _text(f"{_CGROUP}.stat"), re.MULTILINE)
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(free, 0)


def training_memory() -> tuple[int | None, bool]:
    """Return the bytes that a training has here, and whether they are those of the first GPU."""
    if any(Path(file).exists() for file in _GPU_FILES):
        try:
            import torch

            if torch.cuda.is_available():
                return int(torch.cuda.get_device_properties(0).total_memory), True
        except Exception:  # a broken installation can fail in any way; `doctor` shows it
            pass
    return free_memory(), False


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
