"""How fast a disk copies, for processes that stay small."""

import os
import shutil
import tempfile
import time
from pathlib import Path

_FILE = 2**26  # bytes


def copy_speed(folder: Path | None = None) -> float:
    """Bytes per second of copying a file that is in the page cache."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, target = Path(name, "source"), Path(name, "target")
        source.write_bytes(os.urandom(2**20) * (_FILE // 2**20))
        begin = time.perf_counter()
        shutil.copyfile(source, target)
        return _FILE / (time.perf_counter() - begin)
