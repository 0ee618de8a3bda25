"""Take the text out of a row: of a column, or of its messages in the model's chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inheritune.data.bad_rows import BadRows, is_clean
from inheritune.errors import RecipeError, escape, first_line

Render = Callable[[Any], str]  # makes a text of a list of messages


@dataclass(frozen=True)
class TextColumn:
    """The field of a row that holds the text, or the messages that a text is made of."""

    name: str  # ``a.b`` is field b within field a
    render: Render | None = None  # None: the field holds the text

    @property
    def root(self) -> str:
        """The column that the field lies in."""
        return self.name.partition(".")[0]

    def text_of(self, row: Any, where: str, bad: BadRows) -> str | None:
        """Take the text out of a row; None if it is null or a bad row was counted."""
        has_field, value = _field(row, self.name)
        if has_field and self.render is not None and value is not None:
            try:
                value = self.render(value)
            except RecipeError:
                raise
            except Exception as error:  # whatever the template's own text makes Jinja raise
                what = f"column {self.name!r} cannot be rendered as messages: {first_line(error)}"
                bad.add(where, what)
                return None
        if has_field and (value is None or isinstance(value, str)):
            return value if value is None or is_clean(value, where, bad) else None
        columns = ", ".join(escape(name, 40) for name in row) or "none"
        what = f"it has no column {self.name!r}; its columns are {columns}"
        if has_field:
            kind = type(value).__name__
            what = f"column {self.name!r} holds {kind}, not text; columns: {columns}"
        bad.add(where, what, _way_out(row))
        return None


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, such as ``{"role": ..., "content": ...}``."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(key in first for key in ("role", "from"))


def render_hint(column: str) -> str:
    """Return the way out for a column of messages."""
    name = escape(column, 40)
    return f"Set data.messages to {name}: the model's chat template makes text of it."


def _way_out(row: dict[str, Any]) -> str:
    for name, value in row.items():
        if is_messages(value):
            return render_hint(name)
    nested = next(((k, v) for k, v in row.items() if isinstance(v, dict)), None)
    lists = [name for name, value in row.items() if isinstance(value, list)]
    if nested is not None:
        field = next((key for key, value in nested[1].items() if isinstance(value, str)), "FIELD")
        name = escape(f"{nested[0]}.{field}", 60)
        return f"Name the text column in data.text_column; {name} is one within another."
    if lists:
        return f"{lists[0]} is a list: write its text into a column of its own, and name that."
    return "Name the text column in data.text_column."


def _field(row: Any, column: str) -> tuple[bool, Any]:
    """Return whether a row has a field, and its value."""
    if column in row:
        return True, row[column]
    value = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            return False, None
        value = value[name]
    return True, value
