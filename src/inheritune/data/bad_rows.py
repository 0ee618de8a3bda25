"""Rows and files that cannot be read: counted, named, and given up on above a limit."""

from dataclasses import dataclass
from typing import Any

from inheritune.errors import DataError

__all__ = ["BadRows", "decode", "text_of"]

_COLUMN = "Name the text column in data.text_column."


@dataclass
class BadRows:
    """Counts what cannot be read, and gives up above the limit.

    Attributes:
        limit: How many may be skipped.
        seen: How many were.
    """

    limit: int
    seen: int = 0

    def add(self, where: str, what: str, hint: str = "") -> None:
        """Skip one more.

        Args:
            where: File, and line or row.
            what: What is wrong with it.
            hint: The way out, where it is not to repair or skip it.

        Raises:
            DataError: It is one too many.
        """
        self.seen += 1
        if self.seen > self.limit:
            skipped = f" ({self.limit} skipped before it)" if self.limit else ""
            way_out = hint or "Repair it, leave it out, or let data.max_bad_rows skip it."
            raise DataError(f"cannot read {where}: {what}{skipped}.", way_out)


def decode(data: bytes, where: str, bad: BadRows) -> str | None:
    """The text of some bytes in UTF-8; None, and counted, where it is none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad.add(where, f"byte {error.start} is not UTF-8")
        return None
    return text if _is_clean(text, where, bad) else None


def text_of(row: Any, column: str, where: str, bad: BadRows) -> str | None:
    """The text of a row; None for null, and, counted, where there is no text."""
    columns = ", ".join(map(str, row)) or "none"
    if column not in row:
        bad.add(where, f"it has no column {column!r}; its columns are {columns}", _COLUMN)
        return None
    text = row[column]
    if text is not None and not isinstance(text, str):
        what = f"column {column!r} holds {type(text).__name__}, not text; columns: {columns}"
        bad.add(where, what, _COLUMN)
        return None
    return text if text is None or _is_clean(text, where, bad) else None


def _is_clean(text: str, where: str, bad: BadRows) -> bool:
    if "\0" in text:
        bad.add(where, "it holds a NUL character")
        return False
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad.add(where, f"character {error.start} is half of a surrogate pair")
        return False
    return True
