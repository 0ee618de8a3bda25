"""Count and name the rows and files that cannot be read, and give up above a limit."""

from dataclasses import dataclass
from typing import Any

from inheritune.errors import DataError, escape

_COLUMN = "Name the text column in data.text_column."


@dataclass
class BadRows:
    """Counts the rows and files that were skipped."""

    limit: int  # most that may be skipped
    seen: int = 0

    def add(self, where: str, what: str, hint: str = "") -> None:
        """Skip one more row or file.

        Args:
            where: File, and line or row.
            what: A clause that says what is wrong with it.
            hint: The way out, if it is not to repair or to skip the row.

        Raises:
            DataError: This one exceeds the limit.
        """
        self.seen += 1
        if self.seen > self.limit:
            skipped = f" ({self.limit} skipped before it)" if self.limit else ""
            way_out = hint or "Repair it, leave it out, or let data.max_bad_rows skip it."
            raise DataError(f"cannot read {where}: {what}{skipped}.", way_out)


def decode(data: bytes, where: str, bad: BadRows) -> str | None:
    """Decode UTF-8, with or without a byte order mark; None if a bad row was counted."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad.add(where, f"byte {error.start} is not UTF-8")
        return None
    return text if _is_clean(text, where, bad) else None


def text_of(row: Any, column: str, where: str, bad: BadRows) -> str | None:
    """Take the text out of a row; None if it is null or a bad row was counted."""
    text = row.get(column)
    if column in row and (text is None or isinstance(text, str)):
        return text if text is None or _is_clean(text, where, bad) else None
    columns = ", ".join(escape(name, 40) for name in row) or "none"
    what = f"it has no column {column!r}; its columns are {columns}"
    if column in row:
        what = f"column {column!r} holds {type(text).__name__}, not text; columns: {columns}"
    bad.add(where, what, _COLUMN)
    return None


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
