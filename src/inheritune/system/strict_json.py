"""Read JSON strictly: no duplicate keys, no NaN, and no more than fits into memory.

The only reader of JSON files in this package. Python's own accepts a key twice (the last one wins),
NaN, and numbers that overflow to infinity; and it has no limit to what it allocates.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from inheritune.errors import DataError, InherituneError, SourceError, escape, first_line
from inheritune.system.reading import read_regular_file

T = TypeVar("T")


@dataclass(frozen=True)
class JsonLimits:
    """How much a JSON text may hold, and which error refuses it.

    Attributes:
        max_bytes: Size of the largest file that is read.
        max_values: Most values, counted by their brackets and commas; None: no limit.
        max_wide_bytes: Size of the largest text with characters beyond ASCII; None: no limit.
        max_depth: Most levels of nesting; None: as many as Python's parser takes.
        infinity: Accept a bare ``Infinity``: the published configs of Mamba hold it.
        error: Raised for a file that is missing or refused.
        hint: The way out when the text is broken.
    """

    max_bytes: int
    max_values: int | None = None
    max_wide_bytes: int | None = None
    max_depth: int | None = None
    infinity: bool = False
    error: type[InherituneError] = DataError
    hint: str = "Restore it from a copy, or remove it."

    def times(self, factor: int) -> "JsonLimits":
        """Raise the limits of size by a factor, for a file of which we know that it is long."""
        return replace(
            self,
            max_bytes=factor * self.max_bytes,
            max_values=self.max_values and factor * self.max_values,
            max_wide_bytes=self.max_wide_bytes and factor * self.max_wide_bytes,
        )


OWN_FILE = JsonLimits(max_bytes=256_000_000)
"""For files that this program wrote; the largest one lists the files of a corpus."""

# Together these keep what is allocated below 300 MiB: a value costs up to 300 bytes as a Python
# object, and a character one byte before parsing and one after. The longest known list, the weight
# index of a model with 140,000 tensors, has a third of these values. A single character beyond the
# Basic Multilingual Plane makes the whole decoded text four times as large.
UNTRUSTED = JsonLimits(
    max_bytes=32 * 2**20,
    max_values=500_000,
    max_wide_bytes=8 * 2**20,
    max_depth=50,
    error=SourceError,
    hint="Download it again.",
)
"""For texts by strangers, such as the header of a weight file."""

MODEL_FILE = replace(UNTRUSTED, infinity=True)
"""For the JSON files of a model directory."""


def read_json(path: Path, limits: JsonLimits = OWN_FILE, what: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: Must be a regular file.
        limits: By default those for files that this program wrote.
        what: Describes the file in messages, such as ``"the config"``.

    Raises:
        InherituneError: The file is missing, unreadable, too large or not strict JSON. The class is
            ``limits.error``: `DataError` by default.
    """
    name = f"{what} {escape(path, 300)}".strip()
    try:
        data = read_regular_file(path, limits.max_bytes)
    except OSError as error:
        raise limits.error(f"cannot read {name}: {error.strerror}.") from error
    return parse_json(data, name, limits)


def read_json_object(path: Path, limits: JsonLimits = OWN_FILE, what: str = "") -> dict[str, Any]:
    """Read a JSON file that must hold an object; the rest as `read_json`."""
    value = read_json(path, limits, what)
    if not isinstance(value, dict):
        name = f"{what} {escape(path, 300)}".strip()
        raise limits.error(f"{name} is not a JSON object.", limits.hint)
    return value


@contextmanager
def refuse_wrong_types(path: Path) -> Iterator[None]:
    """Raise a `DataError` that names a file of ours where the block trips over what it holds."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{escape(path, 300)} holds what inheritune does not write: {first_line(error)}.",
            "Restore it from a copy, update inheritune, or remove it to make it again.",
        ) from error


def as_dataclass(kind: type[T], fields: Any, path: Path) -> T:
    """Make a frozen dataclass from the fields that a file of ours holds.

    Raises:
        DataError: A field is missing, unknown or of another type; the file is named.
    """
    from pydantic import ConfigDict, ValidationError
    from pydantic.dataclasses import dataclass as checked

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    with refuse_wrong_types(path):
        try:
            checked(kind, config=config, frozen=True)(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}") from error
        return kind(**fields)


def parse_json(data: bytes, name: str, limits: JsonLimits) -> Any:
    """Parse strict JSON.

    Args:
        data: UTF-8 text.
        name: Begins every message.
        limits: What is allowed. Its ``max_bytes`` counts for files only.

    Raises:
        InherituneError: Bad UTF-8 or JSON, a key twice in one object, NaN, a number beyond a
            double, half a surrogate pair, or more than ``limits`` allow.
    """
    _refuse_size(data, name, limits)

    def constant(text: str) -> float:
        if limits.infinity and text != "NaN":
            return float(text)
        raise ValueError(f"{text} is not a JSON number")

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=constant,
        )
    except RecursionError as error:
        raise limits.error(f"{name} is not valid JSON: nested too deeply.", limits.hint) from error
    except ValueError as error:  # includes bad UTF-8 and integers of 5,000 digits
        reason = escape(error, 160)
        way_out = next((way for sign, way in _WAYS_OUT if sign in reason), limits.hint)
        raise limits.error(f"{name} is not valid JSON: {reason}.", way_out) from error
    if limits.max_depth is not None and _depth(value) > limits.max_depth:
        raise limits.error(f"{name} is nested more than {limits.max_depth} levels deep.")
    return value


# What a second download would not mend.
_WAYS_OUT = (
    ("BOM", "Save it as UTF-8 without a byte order mark."),
    ("appears twice", "Delete one of the two: programs differ in which one they take."),
    ("NaN is not", "Write null in its place, or delete the key."),
)


def _refuse_size(data: bytes, name: str, limits: JsonLimits) -> None:
    if limits.max_values is not None:
        # Also counts marks inside of strings, of which no file of a model has that many.
        values = sum(data.count(mark) for mark in (b"{", b"[", b","))
        if values > limits.max_values:
            most = f"{limits.max_values:,} are allowed"
            raise limits.error(f"{name} holds {values:,} values; {most}.")
    wide = not data.isascii() or b"\\u" in data
    if wide and limits.max_wide_bytes is not None and len(data) > limits.max_wide_bytes:
        raise limits.error(
            f"{name} has {len(data):,} bytes with characters beyond ASCII; "
            f"{limits.max_wide_bytes:,} are allowed."
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} appears twice")
            seen.add(key)
    for key in values:
        key.encode("utf-8")  # half a surrogate pair could not be written again
    return values


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large a number")
    return number


def _depth(value: Any) -> int:
    """Count levels of nesting one level at a time, without recursion."""
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
