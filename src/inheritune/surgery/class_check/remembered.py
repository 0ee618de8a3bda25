"""Remember what a model's class answered: asking it costs seconds, for importing transformers.

An answer depends on what was asked, on this package and on the installed ones. Whether these are
still the same is told by their versions and by the times at which their directories changed; a file
of them that is edited in its place goes unnoticed.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import inheritune
from inheritune.errors import InherituneError
from inheritune.system.files import write_json
from inheritune.system.strict_json import OWN_FILE, read_json_object

_LIMITS = replace(OWN_FILE, infinity=True)  # as in configs
_NO_CACHE = (InherituneError, OSError, RuntimeError)  # the last one where there is no home
_KEPT_S = 30 * 24 * 3600.0


def recall(question: str, about: Any) -> dict[str, Any] | None:
    """Return ``{"answer": ...}`` if the same was asked here before, else None.

    Args:
        about: What the answer depends on, as JSON values.
    """
    with suppress(*_NO_CACHE):  # missing, damaged, or there is no home
        if (file := _file(question, about)) is not None:
            found = read_json_object(file, _LIMITS)
            return found if "answer" in found else None
    return None


def remember(question: str, about: Any, answer: Any) -> None:
    """Keep an answer for a month. A cache that cannot be written costs time, nothing else."""
    with suppress(*_NO_CACHE):
        if (file := _file(question, about)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"answer": answer}, infinity=True)
            _drop_old(file.parent)


def _file(question: str, about: Any) -> Path | None:
    if (installed := _installed()) is None:
        return None
    digest = hashlib.sha256(json.dumps([question, about, installed]).encode()).hexdigest()
    return cache_directory() / "class-answers" / f"{digest}.json"


def cache_directory() -> Path:
    """Return the user's cache of this package: ``INHERITUNE_CACHE``, or below ``~/.cache``."""
    if given := os.environ.get("INHERITUNE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inheritune"


@cache
def _installed() -> list[Any] | None:
    """Describe this package's files and the directories of the others; None: they may be edited."""
    versions: list[str] = []
    places = {Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")}
    for name in ("torch", "transformers"):
        found = find_spec(name)
        place = Path(found.origin).parent.parent if found and found.origin else None
        installed = [] if place is None else sorted(place.glob(f"{name}-*.dist-info"))
        if place is None or not installed:
            return None
        places.add(place)
        versions += map(str, installed)
    changed = sorted((str(p), p.stat().st_mtime_ns) for p in places if p.is_dir())
    return [versions, changed, sorted(_own_files())]


def _own_files() -> Iterator[tuple[str, int, int]]:
    root = Path(inheritune.__file__).parent
    for path in root.rglob("*.py"):
        found = path.stat()
        yield str(path.relative_to(root)), found.st_size, found.st_mtime_ns


def _drop_old(directory: Path) -> None:
    for path in directory.iterdir():
        if time.time() - path.stat().st_mtime > _KEPT_S:
            path.unlink(missing_ok=True)
