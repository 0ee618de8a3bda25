"""Recognize in which format a file holds text: one table, which the reader and the docs share."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from inheritune.data.file_kinds import kind_by_signature
from inheritune.system.reading import open_regular_file

_HEAD = 4096  # bytes of a file that show its kind
COMPRESSIONS = (".gz", ".zst", ".bz2", ".lz4", ".xz")


@dataclass(frozen=True)
class TextFormat:
    """One format of text."""

    name: str
    endings: tuple[str, ...]  # of a file's name, in lower case
    documents: str  # what becomes a document, for the docs
    is_compressible: bool = False


LINES = TextFormat("JSON lines", (".jsonl", ".ndjson", ".jsonlines"), "each line, an object", True)
JSON = TextFormat(
    "JSON", (".json",), "each line, an object; or each object of one array up to 256 MB", True
)
TABLE = TextFormat("table", (".csv", ".tsv"), "each row; the first one names the columns", True)
PARQUET = TextFormat("parquet", (".parquet",), "each row")
ARROW = TextFormat("Arrow", (".arrow",), "each row; also the folder of `save_to_disk`")
UNREADABLE = TextFormat("unreadable", (".zip", ".tar", ".7z", *COMPRESSIONS), "")
PROSE = TextFormat(
    "prose",
    (".txt", ".md"),
    "the file; one as long as a book is cut; a `.txt` separated by `<|endoftext|>`, each part",
)
TEXT = TextFormat("other text", ("",), "the file, in UTF-8")
FORMATS = (LINES, JSON, TABLE, PARQUET, ARROW, UNREADABLE, PROSE, TEXT)
_ROWS = (LINES, JSON, TABLE, PARQUET, ARROW)

# What lies beside data and is none: checksums and metadata, of a Hub dataset or of save_to_disk.
_METADATA = (
    "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "SHA256SUMS",
    "MD5SUMS", "checksums.*", "_SUCCESS", "cache-*.arrow",
)  # fmt: skip
_OF_DATA_SETS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json")
_CARDS = ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CITATION")
_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-])")


def format_of(name: str) -> TextFormat:
    """Return the format that a file's name stands for, whatever its case."""
    name = name.lower()
    plain = without_compression(name)
    for text_format in FORMATS:
        if (plain if text_format.is_compressible else name).endswith(text_format.endings):
            return text_format
    return TEXT


def without_compression(name: str) -> str:
    """Return a file's name, in lower case, without the ending of its compression."""
    return next((name.removesuffix(end) for end in COMPRESSIONS if name.endswith(end)), name)


def taken_from_folder(root: Path, files: list[Path]) -> list[Path]:
    """Choose what of a folder is text.

    Metadata are left out. In the folder of a data set only rows are text, of the split train where
    there is one. A folder is one if metadata of a data set lie in it, or if its files of rows have
    at least as many bytes as its other text. In all others, such as a repository of code, tables
    and ``.json`` files are left out: they are fixtures and settings.
    """
    texts = [path for path in files if not any(fnmatch(path.name, rule) for rule in _METADATA)]
    rows = [path for path in texts if format_of(path.name) in _ROWS and not is_one_object(path)]
    if not rows:
        return [path for path in texts if not is_one_object(path)] or texts
    is_data_set = any(path.name in _OF_DATA_SETS for path in files)
    if not is_data_set and _bytes(rows) < _bytes(path for path in texts if _is_other_text(path)):
        return [path for path in texts if format_of(path.name) not in (TABLE, JSON)]
    splits = {path: _SPLIT.findall(path.relative_to(root).as_posix()) for path in rows}
    if any("train" in names for names in splits.values()):
        rows = [path for path in rows if not splits[path] or "train" in splits[path]]
    return rows


def _is_other_text(path: Path) -> bool:
    """Whether a file is code or prose, and not the card or licence of a data set."""
    if format_of(path.name) not in (PROSE, TEXT) or path.name.upper().startswith(_CARDS):
        return False
    head = _beginning(path, _HEAD)
    return no_text(head) is None and not _is_page(head) and b"\0" not in head


def _bytes(paths: Iterable[Path]) -> int:
    return sum(size_of(path) for path in paths)


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 where reading it will say what is wrong."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _beginning(path: Path, size: int) -> bytes:
    """Read the first bytes of a file; none where reading it will say what is wrong."""
    try:
        with open_regular_file(path) as stream:
            return stream.read(size)
    except OSError:
        return b""


def is_web_page(path: Path) -> bool:
    """Whether a file is a web page by its beginning, and not prose by its name."""
    return format_of(path.name) is TEXT and _is_page(_beginning(path, _HEAD))


def _is_page(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:15].lower().startswith((b"<!doctype html", b"<html"))


def is_one_object(path: Path) -> bool:
    """Whether a ``.json`` file is neither rows nor an array: such as a configuration."""
    if path.suffix.lower() != ".json":
        return False
    head = _beginning(path, 1 << 20)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:1] == b"{" and not _is_object(start.partition(b"\n")[0], len(head) < 1 << 20)


def no_text(head: bytes) -> str | None:
    """Say what the beginning of a file shows it to be, where that is no text.

    Args:
        head: Its first 4 KiB, or all it has.
    """
    if (kind := kind_by_signature(head)) is not None:
        return kind
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"WARC/"):
        return "a WARC file"
    line, end, _ = start.partition(b"\n")
    if start.startswith(b"{") and _is_object(line, bool(end) or len(head) < _HEAD):
        return "rows of JSON"
    return None


def _is_object(line: bytes, is_whole: bool) -> bool:
    if not is_whole and b"\n" not in line:
        return re.match(rb'\{\s*"[^"]*"\s*:', line) is not None
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
