"""Count and name the rows and files that cannot be read, and give up above a limit."""

from dataclasses import dataclass

from inheritune.data.file_kinds import WAYS_OUT, kind_by_signature
from inheritune.errors import DataError

_NUL = "it holds a NUL character"


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
        what = f"byte {error.start} is not UTF-8"
    else:
        if "\0" not in text:
            return text if is_clean(text, where, bad) else None
        what = _NUL
    kind = kind_by_signature(data[:64])
    hint = f"{WAYS_OUT[kind]}." if kind in WAYS_OUT else ""
    bad.add(where, what if kind is None else f"{what}: it is {kind}", hint)
    return None


def is_clean(text: str, where: str, bad: BadRows) -> bool:
    """Whether a text is free of NUL and encodable as UTF-8; if not, a bad row was counted."""
    if "\0" in text:
        bad.add(where, _NUL)
        return False
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad.add(where, f"character {error.start} is half of a surrogate pair")
        return False
    return True
