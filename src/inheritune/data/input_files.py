"""List the files that a source names: the standard library, or files, globs and folders."""

import glob
import os
import stat
import sysconfig
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

from inheritune.data.text_formats import read_as, taken_from_folder
from inheritune.errors import DataError, reason_of

# Sources that every machine has: the library, and the library with what its tests add.
STDLIB = ("stdlib", "stdlib+tests")
# Not every installation has them, so what is held out never is one of them.
_STDLIB_TESTS = ("test", "tests", "idle_test")
# Encodings and pydoc_data are tables, the rest is made at build time or is not the library at all.
_STDLIB_SKIPPED = (
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
    "config-*",
    "__pycache__",
    "_sysconfigdata*.py",
    "sitecustomize.py",
    "usercustomize.py",
)
_HIDDEN = (".*", "__pycache__", "*.partial")


@dataclass(frozen=True)
class InputFile:
    """One file that documents are read from, and its name relative to the source."""

    name: str
    path: Path
    train_only: bool = False
    given: str | None = None  # `data.format`; None: its name says it
    separator: str | None = None  # `data.separator`

    @property
    def read_as(self) -> str:
        """The name whose ending says how the file is read."""
        return read_as(self.name, self.given)


def input_files(
    source: str | list[str], given: str | None = None, separator: str | None = None
) -> list[InputFile]:
    """List the files of a source, sorted by the bytes of their relative names.

    Args:
        source: ``"stdlib"``, ``"stdlib+tests"``, or local files, globs or folders.
        given: `data.format`.
        separator: `data.separator`.

    Returns:
        At least one file; every file once, however many entries match it.

    Raises:
        DataError: An entry matches nothing, or is neither a file nor a folder.
    """
    if source in (*STDLIB, *([name] for name in STDLIB)):
        root = Path(sysconfig.get_path("stdlib"))
        tests = () if STDLIB[1] in source else _STDLIB_TESTS
        files = [p for p in _walk(root, _STDLIB_SKIPPED + tests) if p.suffix == ".py"]
        train_only = {
            p for p in files if not {*_STDLIB_TESTS}.isdisjoint(p.relative_to(root).parts)
        }
    else:
        train_only = set()
        entries = [source] if isinstance(source, str) else source
        expanded = [_expand(entry, given) for entry in entries]
        files = [path for _, matches in expanded for path in matches]
        if not files:
            raise DataError(
                f"there is no file in {spell(source)}.", "Give files, globs or folders."
            )
        root = Path(os.path.commonpath([folder for folder, _ in expanded]))
    by_name = {path.relative_to(root).as_posix(): path for path in files}
    # surrogateescape: any file name, whatever the locale
    names = sorted(by_name, key=lambda name: name.encode(errors="surrogateescape"))
    paths = [by_name[name] for name in names]
    return [
        InputFile(name, path, path in train_only, given, separator)
        for name, path in zip(names, paths, strict=True)
    ]


def _expand(entry: str, given: str | None) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files of one entry."""
    if not entry.strip():
        raise DataError("a source is empty.", "Give stdlib, or files, globs or folders.")
    path = _absolute(entry)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _expand_glob(entry, path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot open {entry}: {reason_of(error)}.", "Correct the path.") from error
    path = Path(os.path.normpath(path))
    if stat.S_ISDIR(mode):
        return path, taken_from_folder(path, _walk(path, _HIDDEN), given)
    if stat.S_ISREG(mode):
        return path.parent, [path]
    raise DataError(f"{entry} is neither a file nor a folder.", "Give files, globs or folders.")


def _absolute(entry: str) -> Path:
    return Path(os.path.expandvars(entry)).expanduser().absolute()


def _expand_glob(entry: str, path: Path) -> tuple[Path, list[Path]]:
    if not glob.has_magic(str(path)):
        raise DataError(
            f"there is no file or folder '{entry}' in {Path.cwd()}.",
            "Give stdlib, or existing files, globs or folders.",
        )
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = [match for match in matches if not match.is_dir()]
    if not files:
        raise DataError(
            f"no file matches '{entry}' in {Path.cwd()}.",
            "Correct the pattern; [[] stands for a bracket."
            if "[" in entry
            else "Correct the pattern.",
        )
    first = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    return Path(*path.parts[:first]), files


def _walk(root: Path, skipped: tuple[str, ...]) -> list[Path]:
    """List the files below a folder; every folder is entered once, however it is linked."""

    def fail(error: OSError) -> NoReturn:
        raise DataError(
            f"cannot list {error.filename}: {(error.strerror or '').lower()}.",
            "Make it readable, or leave it out.",
        ) from error

    files = []
    entered = {_identity(str(root))}
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        folders[:] = sorted(n for n in folders if not any(fnmatch(n, rule) for rule in skipped))
        fresh = []
        for name in folders:
            try:
                identity = _identity(os.path.join(folder, name))  # noqa: PTH118
            except OSError as error:
                fail(error)
            if identity not in entered:
                entered.add(identity)
                fresh.append(name)
        folders[:] = fresh
        files += [
            Path(folder, name) for name in names if not any(fnmatch(name, r) for r in skipped)
        ]
    return files


def _identity(folder: str) -> tuple[int, int]:
    """Return device and number of a folder, which links to it share."""
    facts = os.stat(folder)  # noqa: PTH116
    return facts.st_dev, facts.st_ino


def left_out(source: str | list[str], files: list[InputFile]) -> list[str]:
    """Name the files of the source's folders that are not among its input files, sorted."""
    names, taken = [], {file.path for file in files}
    for entry in [source] if isinstance(source, str) else source:
        root = Path(os.path.normpath(_absolute(entry)))
        if entry not in STDLIB and root.is_dir():
            others = {*_walk(root, _HIDDEN)} - taken
            names += [path.relative_to(root).as_posix() for path in others]
    return sorted(names)


def some(names: list[str], count: int) -> str:
    """Name the first five of a number of files."""
    more = f" and {count - 5:,} more" if count > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def spell(source: str | list[str]) -> str:
    """Return a source as it can stand in a message."""
    return source if isinstance(source, str) else ", ".join(source) or "an empty list"
