"""Recognize in which format a file holds text: one table, which the reader and the docs share."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from inheritune.data.file_kinds import (
    JSON_OBJECT,
    JSON_ROWS,
    TABLE_ROWS,
    WARC,
    kind_by_signature,
)
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
    True,
)
TEXT = TextFormat("other text", ("",), "the file, in UTF-8")
FORMATS = (LINES, JSON, TABLE, PARQUET, ARROW, PROSE, UNREADABLE, TEXT)
_ROWS = (LINES, JSON, TABLE, PARQUET, ARROW)
# Values of data.format, and the ending that a file is then taken to have.
GIVEN = {
    "text": ".txt",
    **{end.removeprefix("."): end for end in (".jsonl", ".json", ".csv", ".tsv")},
    **{end.removeprefix("."): end for end in (".parquet", ".arrow")},
}

# What lies beside data and is none: checksums and metadata, of a Hub dataset or of save_to_disk.
_METADATA = (
    "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "SHA256SUMS",
    "MD5SUMS", "checksums.*", "_SUCCESS", "cache-*.arrow",
)  # fmt: skip
_OF_DATA_SETS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json")
_CARDS = ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CITATION")
_ROWS_OF_TEXT = (WARC, JSON_ROWS, TABLE_ROWS)
MARKUP = (*_ROWS_OF_TEXT, JSON_OBJECT)  # can be taken as text all the same
_OF_TABLES = ("", ".txt", ".dat", ".data", ".tab", ".out")  # endings of tables that are not .csv
_LEAST_ROWS = 4  # fewer lines may have as many commas by chance
_NAME = re.compile(r'"?[A-Za-z_][\w .-]{0,40}"?')  # of a column
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
    name = name.lower()
    return next((name.removesuffix(end) for end in COMPRESSIONS if name.endswith(end)), name)


def read_as(name: str, given: str | None) -> str:
    """Return the name by which a file is read: its own, or with the ending of a given format."""
    own = format_of(name)
    if given is None or (given == "text" and own in (PROSE, TEXT)):
        return name
    plain = without_compression(name)
    return plain + GIVEN[given] + name.lower()[len(plain) :]


def taken_from_folder(root: Path, files: list[Path], given: str | None = None) -> list[Path]:
    """Choose what of a folder is text.

    Metadata are left out. Of a given format, files with its ending are taken and those without a
    known one; as text, all are. Else, in the folder of a data set only rows are text, of the split
    train where there is one. A folder is one if metadata of a data set lie in it, or if its files
    of rows have at least as many bytes as its other text. In all others, such as a repository of
    code, tables and ``.json`` files are left out: they are fixtures and settings.
    """
    texts = [path for path in files if not any(fnmatch(path.name, rule) for rule in _METADATA)]
    if given is not None:
        formats = (format_of(GIVEN[given]), TEXT)
        return [path for path in texts if given == "text" or format_of(path.name) in formats]
    rows = [path for path in texts if format_of(path.name) in _ROWS and not is_one_object(path)]
    if not rows:
        return _without_foreign([p for p in texts if not is_one_object(p)]) or texts
    is_data_set = any(path.name in _OF_DATA_SETS for path in files)
    if not is_data_set and _bytes(rows) < _bytes(path for path in texts if _is_other_text(path)):
        return _without_foreign([p for p in texts if format_of(p.name) not in (TABLE, JSON)])
    splits = {path: _SPLIT.findall(path.relative_to(root).as_posix()) for path in rows}
    if any("train" in names for names in splits.values()):
        rows = [path for path in rows if not splits[path] or "train" in splits[path]]
    return rows


def _without_foreign(paths: list[Path]) -> list[Path]:
    """Leave out what is no text, such as pictures among code, where text is left.

    Rows under another name stay, to be refused by what they are, if they are the bulk.
    """
    kinds = {path: _foreign(path) for path in paths}
    texts = [path for path in paths if kinds[path] is None and not _is_card(path)]
    if not texts:
        return paths
    markup = [path for path in paths if kinds[path] in _ROWS_OF_TEXT]
    if _bytes(markup) < _bytes(texts):
        return [path for path in paths if kinds[path] is None]
    return [path for path in paths if kinds[path] is None or path in markup]


def _is_other_text(path: Path) -> bool:
    """Whether a file is code or prose, and not the card or licence of a data set."""
    if format_of(path.name) not in (PROSE, TEXT) or _is_card(path):
        return False
    return _foreign(path) is None and not _is_page(_beginning(path, _HEAD))


def _is_card(path: Path) -> bool:
    return path.name.upper().startswith(_CARDS)


def _foreign(path: Path) -> str | None:
    """Say what a file in a folder is, if it is no text although its name may stand for text."""
    text_format = format_of(path.name)
    if text_format is UNREADABLE:
        return "an archive"
    if text_format not in (PROSE, TEXT) or without_compression(path.name) != path.name.lower():
        return None
    head = _beginning(path, _HEAD)
    if text_format is PROSE:  # in another encoding it is still text, which reading says
        return markup_kind(head, path.name)
    return no_text(head, path.name) or ("a binary file" if b"\0" in head else None)


def _bytes(paths: Iterable[Path]) -> int:
    return sum(size_of(path) for path in paths)


def is_packed(path: Path) -> bool:
    """Whether a file may hold more text than it has bytes."""
    return path.suffix.lower() in (*COMPRESSIONS, ".parquet", ".arrow")


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


def no_text(head: bytes, name: str) -> str | None:
    """Say what the beginning of a file shows it to be, where that is no text.

    Args:
        head: Its first 4 KiB, or all it has.
        name: The file's name.
    """
    return kind_by_signature(head) or markup_kind(head, name)


def markup_kind(head: bytes, name: str) -> str | None:
    """Say which markup of rows a file begins with, if its name stands for text; see `no_text`."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"WARC/"):
        return WARC
    line, end, rest = start.partition(b"\n")
    is_whole = len(head) < _HEAD
    if start.startswith(b"{") and _is_object(line, bool(end) or is_whole):
        return JSON_OBJECT if is_whole and not rest.strip() else JSON_ROWS
    is_named_so = Path(name.lower()).suffix in _OF_TABLES
    return TABLE_ROWS if is_named_so and _is_table(head, is_whole) else None


def _is_table(head: bytes, is_whole: bool) -> bool:
    """Whether each line has as many cells, separated by tabs, or by commas below a row of names."""
    lines = head.decode("utf-8", "replace").replace("\r", "").split("\n")
    lines = lines[: None if is_whole and lines[-1] else -1]
    if len(lines) < _LEAST_ROWS:
        return False
    names = lines[0].split(",")
    has_names = len(names) > 1 and all(_NAME.fullmatch(name) for name in names)
    for separator in ("\t", *([","] if has_names else [])):
        cells = {len(next(csv.reader([line], delimiter=separator), [])) for line in lines}
        if len(cells) == 1 and cells != {1} and not lines[0].startswith(separator):
            return True
    return False


def _is_object(line: bytes, is_whole: bool) -> bool:
    if not is_whole and b"\n" not in line:
        return re.match(rb'\{\s*"[^"]*"\s*:', line) is not None
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
