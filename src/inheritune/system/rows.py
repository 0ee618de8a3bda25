"""Show results that are tables: as HTML in a notebook, as a pandas data frame when asked."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from inheritune.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas


class Rows:
    """The base of results that are tables: a subclass says what its rows are."""

    def rows(self) -> list[dict[str, Any]]:
        """One mapping for each row, all with the same keys."""
        raise NotImplementedError

    def to_frame(self) -> "pandas.DataFrame":
        """Return the rows as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError(
                "to_frame() needs pandas, which is not installed.",
                "Install it with: pip install pandas. Without it, rows() gives the same values.",
            ) from error
        return pandas.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        return html_table(self.rows())


def html_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """Lay rows out as an HTML table: numbers with four digits, what is missing as a dash.

    Args:
        rows: The keys of the first row are the headers.
        caption: A line above the table.
    """
    headers = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(header.replace('_', ' '))}</th>" for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(header))}</td>" for header in headers) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
