"""Tell how much memory of this machine a program can take."""

import re
from pathlib import Path

_CGROUP = "/sys/fs/cgroup/memory"


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


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
