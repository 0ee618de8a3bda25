"""Hold values with their columns and write them as Markdown, CSV, LaTeX or a terminal grid."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from inheritune.reporting.quantities import MISSING

if TYPE_CHECKING:
    from rich.table import Table as Grid


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    unit: str = ""  # unit of the values in CSV, and of the header unless `self_explaining`
    # Formats a value; `str` for cells that are formatted already. None: a column of text, aligned
    # left.
    show: Callable[[Any], str] | None = None
    # `show` writes the unit into each cell, so the header leaves it out.
    self_explaining: bool = False
    # On a narrow terminal, columns of the highest number are left out first; 0: never left out.
    dispensable: int = 0

    @property
    def title_with_unit(self) -> str:
        """The title, followed by the unit in parentheses where there is one."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def cell(self, value: Any) -> str:
        """Format a value; a dash where it is None."""
        if self.show is not None:
            return self.show(value)
        return MISSING if value is None else str(value)


# A column with the attribute, or the function, of a row that gives its value.
Field = tuple[Column, str | Callable[[Any], Any]]


@dataclass(frozen=True)
class Mark:
    """Standard error, bold type and dagger of one cell."""

    se: float | None = None  # standard error, in the unit of the value
    bold: bool = False
    chance: bool = False  # add a dagger: the score is no better than guessing


@dataclass(frozen=True)
class Table:
    """Rows of values under columns."""

    name: str  # file name without its ending
    columns: Sequence[Column]
    # Rows of numbers and texts, one per column; None where a value is unknown.
    values: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=list)  # sentences below the table
    title: str = ""  # heading on the page where a section has several tables
    # Annotated cells, by (row, column).
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        rows: Sequence[Any],
        fields: Sequence[Field],
        notes: Sequence[str] = (),
        title: str = "",
    ) -> "Table":
        """Make a table of objects: a row for each, and no notes where there are none."""
        getters = [attrgetter(value) if isinstance(value, str) else value for _, value in fields]
        values = [[getter(row) for getter in getters] for row in rows]
        return cls(name, [column for column, _ in fields], values, notes if values else (), title)

    @property
    def headers(self) -> list[str]:
        """Column titles, with units where the cells do not carry them."""
        return [c.title if c.self_explaining else c.title_with_unit for c in self.columns]

    @property
    def rows(self) -> list[list[str]]:
        """Formatted cells, with standard errors and daggers."""
        return [
            [
                self._annotated(r, c, column.cell(value))
                for c, (column, value) in enumerate(zip(self.columns, row, strict=True))
            ]
            for r, row in enumerate(self.values)
        ]

    def transposed(self) -> "Table":
        """A row for each column, as text: for few rows with many columns on a terminal."""
        columns = [Column(self.headers[0]), *(Column(row[0], show=str) for row in self.rows)]
        values = [
            [header, *(row[place] for row in self.rows)]
            for place, header in enumerate(self.headers[1:], 1)
        ]
        return Table(self.name, columns, values, self.notes, self.title)

    def parted(self, first: Sequence[int]) -> tuple["Table", "Table"]:
        """Divide into the rows of these indices and the others; notes stay with the first."""
        rest = [index for index in range(len(self.values)) if index not in first]
        return self._of_rows(first), replace(self._of_rows(rest), notes=())

    def _of_rows(self, chosen: Sequence[int]) -> "Table":
        marks = {
            (place, column): mark
            for (row, column), mark in self.marks.items()
            for place, index in enumerate(chosen)
            if index == row
        }
        return replace(self, values=[self.values[index] for index in chosen], marks=marks)

    def fitted(self, width: int) -> "Table":
        """Leave out dispensable columns until no line is wider than a terminal; marks go, too."""
        from rich.cells import cell_len

        table = self
        while max((column.dispensable for column in table.columns), default=0):
            widths = [
                max(map(cell_len, cells)) for cells in zip(table.headers, *table.rows, strict=True)
            ]
            if sum(widths) + 2 * len(widths) <= width:
                break
            place = max(range(len(widths)), key=lambda c: table.columns[c].dispensable)
            table = replace(
                table,
                columns=[*table.columns[:place], *table.columns[place + 1 :]],
                values=[[*row[:place], *row[place + 1 :]] for row in table.values],
                marks={},
            )
        return table

    def is_bold(self, row: int, column: int) -> bool:
        """Tell whether a cell is set in bold."""
        return self.marks.get((row, column), _NO_MARK).bold

    def markdown(self) -> str:
        """Write the table as Markdown, with its notes below."""
        lines = [self.headers, ["---:" if c.show else "---" for c in self.columns]]
        cells = [[_markdown_cell(text) for text in line] for line in [*lines, *self.rows]]
        for r, row in enumerate(cells[2:]):
            row[:] = [f"**{text}**" if self.is_bold(r, c) else text for c, text in enumerate(row)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in cells)
        notes = "".join(f"\n{_markdown_cell(note)}\n" for note in self.notes)
        return f"{table}\n{notes}"

    def csv(self) -> str:
        """Write the values in full as CSV, without notes; an unknown value is empty.

        A column with marked cells gets a column of standard errors at the end of the row.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        marked = sorted({column for _, column in self.marks})
        titles = [column.title_with_unit for column in self.columns]
        writer.writerow([*titles, *(f"{titles[c]} SE" for c in marked)])
        for r, row in enumerate(self.values):
            errors = [self.marks.get((r, c), _NO_MARK).se for c in marked]
            writer.writerow("" if value is None else value for value in [*row, *errors])
        return out.getvalue()

    def latex(self) -> str:
        """Write the table as a LaTeX ``tabular`` that needs no package; notes are comments."""
        alignment = "".join("r" if column.show else "l" for column in self.columns)
        header = " & ".join(map(_latex_cell, self.headers)) + r" \\"
        lines = [f"\\begin{{tabular}}{{{alignment}}}", "\\hline", header, "\\hline"]
        for r, row in enumerate(self.rows):
            cells = [_latex_cell(text) for text in row]
            cells = [f"\\textbf{{{t}}}" if self.is_bold(r, c) else t for c, t in enumerate(cells)]
            lines.append(" & ".join(cells) + r" \\")
        lines += ["\\hline", "\\end{tabular}"]
        lines += [f"% {' '.join(note.split())}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def rich(self) -> "Grid":
        """Lay the table out for a terminal; text wraps, formatted values do not. No notes."""
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column, header in zip(self.columns, self.headers, strict=True):
            is_text = column.show is None
            justify = "left" if is_text else "right"
            grid.add_column(Text(header), justify=justify, no_wrap=not is_text)  # type: ignore[arg-type]
        for r, row in enumerate(self.rows):
            grid.add_row(
                *(Text(t, style="bold" if self.is_bold(r, c) else "") for c, t in enumerate(row))
            )
        return grid

    def _annotated(self, row: int, column: int, text: str) -> str:
        mark = self.marks.get((row, column), _NO_MARK)
        if text == MISSING:
            return text
        if mark.se is not None:
            text += f" ± {_as_exact(mark.se, text)}"
        return f"{text} †" if mark.chance else text


_NO_MARK = Mark()


def _as_exact(error: float, value: str) -> str:
    """Write a standard error with the decimals of its value, or one digit where that is 0."""
    if "e" in value:
        return f"{error:.3g}"
    decimals = len(value.partition(".")[2])
    rounded = f"{error:.{decimals}f}"
    return rounded if float(rounded) or not error else f"{error:.1g}"


def _markdown_cell(value: str) -> str:
    flat = " ".join(value.split())
    for sign in ("\\", "|", "`", "*", "["):
        flat = flat.replace(sign, f"\\{sign}")
    return flat.replace("&", "&amp;").replace("<", "&lt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "×": r"$\times$",
    "−": "$-$",
    "—": "--",
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))


def _latex_cell(text: str) -> str:
    """Escape a text; a run of superscript digits becomes one exponent."""
    out, power = "", ""
    for sign in " ".join(text.split()) + "\0":
        if sign in _SUPERSCRIPTS:
            power += _SUPERSCRIPTS[sign]
            continue
        if power:
            out, power = f"{out}$^{{{power}}}$", ""
        out += _LATEX.get(sign, sign)
    return out.removesuffix("\0")
