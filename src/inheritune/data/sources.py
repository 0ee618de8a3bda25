"""Where text comes from: the standard library, or local files, globs and folders."""

import glob
import gzip
import json
import os
import stat
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, cast

from inheritune.errors import DataError

__all__ = ["Document", "InputFile", "documents", "input_files"]

MAX_DOCUMENT_BYTES = 256 << 20  # a document is tokenized in memory

# Sources that every machine has: the library, and the library with what its tests add.
STDLIB = ("stdlib", "stdlib+tests")
# Prose that is one file, such as a book, is cut into documents, so that some can be held out.
_PROSE = (".txt", ".md")
_PART_CHARS = 16_384
_ROWS = (".jsonl", ".jsonl.gz")
_UNREADABLE = (".parquet", ".arrow", ".zst", ".gz", ".bz2", ".xz", ".zip", ".tar", ".7z")
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


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: Path relative to the source, in posix form; ``path:line`` for a row. The same on
            every machine that has the same files.
        text: Never blank, free of NUL, encodable as UTF-8.
        train_only: Never held out.
    """

    name: str
    text: str
    train_only: bool = False


@dataclass(frozen=True)
class InputFile:
    """One file that documents are read from, and its name relative to the source."""

    name: str
    path: Path
    train_only: bool = False


@dataclass
class _BadRows:
    """Counts what cannot be read, and gives up above the limit."""

    limit: int
    seen: int = 0

    def add(self, where: str, what: str, hint: str = "") -> None:
        self.seen += 1
        if self.seen > self.limit:
            skipped = f" ({self.limit} skipped before it)" if self.limit else ""
            way_out = hint or "Repair it, leave it out, or let data.max_bad_rows skip it."
            raise DataError(f"cannot read {where}: {what}{skipped}.", way_out)


def documents(
    source: str | list[str], text_column: str = "text", max_bad_rows: int = 0
) -> Iterator[Document]:
    """Every document of a source, in byte order of the relative paths, rows in file order.

    Args:
        source: ``"stdlib"``, ``"stdlib+tests"`` (its tests as well, for training only), or local
            files, globs or folders. ``.jsonl`` and ``.jsonl.gz`` hold one document in each row,
            any other file is one document in UTF-8, except
            that a .txt or .md file as long as a book is cut into documents between paragraphs.
        text_column: Field of a row that holds the text; null or blank text is left out.
        max_bad_rows: Rows or files that may be unreadable before giving up.

    Yields:
        Documents, one at a time: only one is held in memory.

    Raises:
        DataError: Nothing matches, nothing is readable, or nothing holds text.
    """
    bad = _BadRows(max_bad_rows)
    found = False
    for file in input_files(source):
        try:
            for document in _documents_of(file, text_column, bad):
                found = True
                yield document
        except (OSError, EOFError, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            bad.add(str(file.path), (reason or str(error)).lower())
    if not found:
        raise DataError(f"there is no text in {_spell(source)}.", "Give files that hold text.")


def input_files(source: str | list[str]) -> list[InputFile]:
    """The files of a source, sorted by the bytes of their relative names.

    Args:
        source: As for `documents`.

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
        expanded = [_expand(entry) for entry in entries]
        files = [path for _, matches in expanded for path in matches]
        if not files:
            raise DataError(
                f"there is no file in {_spell(source)}.", "Give files, globs or folders."
            )
        root = Path(os.path.commonpath([folder for folder, _ in expanded]))
    named = {path.relative_to(root).as_posix(): path for path in files}
    names = sorted(named, key=_bytes)
    return [InputFile(name, named[name], named[name] in train_only) for name in names]


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # any file name, whatever the locale


def _expand(entry: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files of one entry."""
    if not entry.strip():
        raise DataError("a source is empty.", "Give stdlib, or files, globs or folders.")
    path = Path(entry).expanduser().absolute()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _expand_glob(entry, path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"cannot open {entry}: {(reason or '').lower()}.", "Correct the path."
        ) from error
    path = Path(os.path.normpath(path))
    if stat.S_ISDIR(mode):
        return path, _walk(path, (".*", "__pycache__"))
    if stat.S_ISREG(mode):
        return path.parent, [path]
    raise DataError(f"{entry} is neither a file nor a folder.", "Give files, globs or folders.")


def _expand_glob(entry: str, path: Path) -> tuple[Path, list[Path]]:
    if not glob.has_magic(entry):
        raise DataError(
            f"there is no file or folder {entry}.",
            "Give stdlib, or existing files, globs or folders.",
        )
    found = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = [match for match in found if not match.is_dir()]
    if not files:
        raise DataError(f"no file matches {entry}.", "Correct the pattern.")
    first = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    return Path(*path.parts[:first]), files


def _walk(root: Path, skipped: tuple[str, ...]) -> list[Path]:
    """Files below a folder. Linked folders are not entered: they may lead in circles."""

    def fail(error: OSError) -> None:
        raise DataError(
            f"cannot list {error.filename}: {(error.strerror or '').lower()}.",
            "Make it readable, or leave it out.",
        ) from error

    files = []
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = [n for n in folders if not any(fnmatch(n, rule) for rule in skipped)]
        files += [
            Path(folder, name) for name in names if not any(fnmatch(name, r) for r in skipped)
        ]
    return files


def _documents_of(file: InputFile, text_column: str, bad: _BadRows) -> Iterator[Document]:
    if not stat.S_ISREG(file.path.stat().st_mode):  # reading a pipe would wait for ever
        bad.add(str(file.path), "it is not a regular file")
    elif file.name.endswith(_ROWS):
        yield from _rows(file, text_column, bad)
    elif file.name.endswith(_UNREADABLE):
        bad.add(str(file.path), "this format is not supported", "Convert it to text or .jsonl.")
    elif file.path.stat().st_size > MAX_DOCUMENT_BYTES:
        bad.add(str(file.path), f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", "Split it up.")
    else:
        text = _decode(file.path.read_bytes(), str(file.path), bad)
        parts = [text or ""]
        if file.name.endswith(_PROSE) and text and len(text) > 4 * _PART_CHARS:
            parts = _parts(text)
        for number, part in enumerate(parts, 1):
            if part.strip():
                name = file.name if len(parts) == 1 else f"{file.name}:{number}"
                yield Document(name, part, file.train_only)


def _parts(text: str) -> list[str]:
    """A book in documents, cut between paragraphs, or between lines where it has none."""
    gap = "\n\n" if "\n\n" in text else "\n"
    parts, begin = [], 0
    while (end := text.find(gap, begin + _PART_CHARS)) >= 0:
        parts.append(text[begin : end + len(gap)])
        begin = end + len(gap)
    return [*parts, text[begin:]]


def _rows(file: InputFile, text_column: str, bad: _BadRows) -> Iterator[Document]:
    with file.path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
        for number, line in enumerate(_lines(cast(BinaryIO, stream)), start=1):
            where = f"{file.path}, line {number}"
            if line is None:
                bad.add(where, f"it is above {MAX_DOCUMENT_BYTES >> 20} MB", "Split it up.")
                continue
            decoded = _decode(line, where, bad)
            if decoded is None or not decoded.strip():
                continue
            text = _text_of_row(decoded, text_column, where, bad)
            if text and text.strip():
                yield Document(f"{file.name}:{number}", text)


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a file; None for one that is too long to be held."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) <= MAX_DOCUMENT_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


def _text_of_row(line: str, text_column: str, where: str, bad: _BadRows) -> str | None:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg.lower() if isinstance(error, json.JSONDecodeError) else "broken"
        bad.add(where, f"it is not JSON: {reason}")
        return None
    if not isinstance(row, dict):
        bad.add(where, "it is not a JSON object")
        return None
    columns = ", ".join(map(str, row)) or "none"
    if text_column not in row:
        what = f"it has no column {text_column!r}; its columns are {columns}"
        bad.add(where, what, "Name the text column in data.text_column.")
        return None
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        what = f"column {text_column!r} holds {type(text).__name__}, not text; columns: {columns}"
        bad.add(where, what, "Name the text column in data.text_column.")
        return None
    return text if text is None or _is_clean(text, where, bad) else None


def _decode(data: bytes, where: str, bad: _BadRows) -> str | None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad.add(where, f"byte {error.start} is not UTF-8")
        return None
    return text if _is_clean(text, where, bad) else None


def _is_clean(text: str, where: str, bad: _BadRows) -> bool:
    if "\0" in text:
        bad.add(where, "it holds a NUL character")
        return False
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad.add(where, f"character {error.start} is half of a surrogate pair")
        return False
    return True


def _spell(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source) or "an empty list"
