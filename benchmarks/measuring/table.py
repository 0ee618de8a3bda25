"""Rows of a table, and the machine that it was measured on."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


def head(titles: Sequence[str]) -> str:
    return f"{row(titles)}\n{'|---' * len(titles)}|"


def machine() -> str:
    """Cores and memory."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text("utf-8").splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores of {processor}, {memory:.0f} GiB"


def software(packages: Sequence[str]) -> str:
    """System, Python, and the versions of packages."""
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    system = f"{platform.system()} {platform.release()}"
    return f"{system}, Python {platform.python_version()}, {found}"
