"""JSON of strangers: no duplicate keys, no NaN, no bottomless nesting, no endless file."""

import json
import math
from pathlib import Path
from typing import Any

from inheritune.errors import SourceError, escape
from inheritune.system.reading import read_regular_file

__all__ = ["parse_json", "read_json"]

# Together they keep what is allocated below 300 MiB: a value costs up to 300 bytes as an object of
# Python, and a character one byte before and one after. The longest known list, the index of a
# model with 140,000 tensors, has a third of it.
_MAX_VALUES = 500_000
_MAX_BYTES = 32 * 2**20
_MAX_DEPTH = 50
# One character beyond the Basic Multilingual Plane makes all of a text four times as large.
_MAX_WIDE_BYTES = 8 * 2**20


def read_json(path: Path, what: str, *, times: int = 1) -> dict[str, Any]:
    """Read a JSON object from a file of a model directory.

    Args:
        path: Regular file of at most 32 MiB.
        what: What it is, for messages, such as ``"the config"``.
        times: How many times as much as usual is allowed, for a file known to be ours.

    Raises:
        SourceError: The file is missing, unreadable, too large, or not one strict JSON object.
    """
    try:
        data = read_regular_file(path, times * _MAX_BYTES)
    except OSError as error:
        raise SourceError(f"cannot read {what} {path}: {error.strerror}.") from error
    value = parse_json(data, f"{what} {path}", infinity=True, times=times)
    if not isinstance(value, dict):
        raise SourceError(f"{what} {path} is not a JSON object.", "Download it again.")
    return value


def parse_json(data: bytes, what: str, *, infinity: bool = False, times: int = 1) -> Any:
    """Parse strict JSON.

    Args:
        data: UTF-8 text.
        what: What it is, for messages.
        infinity: Whether ``Infinity`` is a number. Mamba's published configs hold it.
        times: How many times as much as usual is allowed.

    Raises:
        SourceError: Bad UTF-8 or JSON, a key twice in one object, NaN, a number beyond a double,
            half a surrogate pair, more than 50 levels, or so much that it would fill the memory.
    """
    _refuse_too_much(data, what, times)

    def constant(text: str) -> float:
        if infinity and text != "NaN":
            return float(text)
        raise ValueError(f"{text} is not JSON")

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=constant,
        )
    except RecursionError as error:
        raise SourceError(f"{what} is nested too deeply.") from error
    except ValueError as error:  # bad UTF-8 and integers of 5,000 digits are ValueErrors too
        reason = escape(error, 160)
        raise SourceError(f"{what} is not valid JSON: {reason}.", "Download it again.") from error
    if _depth(value) > _MAX_DEPTH:
        raise SourceError(f"{what} is nested more than {_MAX_DEPTH} levels deep.")
    return value


def _refuse_too_much(data: bytes, what: str, times: int) -> None:
    # Marks inside of texts are counted as well: of the files of a model, none has that many.
    values = sum(data.count(mark) for mark in (b"{", b"[", b","))
    if values > times * _MAX_VALUES:
        raise SourceError(f"{what} holds {values:,} values; {times * _MAX_VALUES:,} are allowed.")
    wide = not data.isascii() or b"\\u" in data
    if wide and len(data) > times * _MAX_WIDE_BYTES:
        raise SourceError(
            f"{what} has {len(data):,} bytes with characters beyond ASCII; "
            f"{_MAX_WIDE_BYTES:,} are allowed."
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    for key in found:
        key.encode("utf-8")  # half a surrogate pair could not be written again
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    return depth
