"""Count and name the rows and files that cannot be read, and give up above a limit."""

from dataclasses import dataclass
from typing import Any

from inheritune.data.file_kinds import kind_by_signature
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
        kind = kind_by_signature(data[:64])
        what = f"byte {error.start} is not UTF-8"
        bad.add(where, what if kind is None else f"{what}: it is {kind}")
        return None
    return text if _is_clean(text, where, bad) else None


def text_of(row: Any, column: str, where: str, bad: BadRows) -> str | None:
    """Take the text out of a row; None if it is null or a bad row was counted."""
    has_text, text = _field(row, column)
    if has_text and (text is None or isinstance(text, str)):
        return text if text is None or _is_clean(text, where, bad) else None
    columns = ", ".join(escape(name, 40) for name in row) or "none"
    what = f"it has no column {column!r}; its columns are {columns}"
    if has_text:
        what = f"column {column!r} holds {type(text).__name__}, not text; columns: {columns}"
    nested = [name for name, value in row.items() if isinstance(value, dict)]
    lists = [name for name, value in row.items() if isinstance(value, list)]
    hint = _COLUMN
    if nested:
        hint = f"Name the text column in data.text_column; {nested[0]}.FIELD is one within another."
    elif lists:
        hint = f"{lists[0]} is a list: write its text into a column of its own, and name that."
    bad.add(where, what, hint)
    return None


def _field(row: Any, column: str) -> tuple[bool, Any]:
    """Return whether a row has a field, and its value; ``a.b`` is ``b`` within ``a``."""
    if column in row:
        return True, row[column]
    value = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            return False, None
        value = value[name]
    return True, value


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
