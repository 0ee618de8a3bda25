"""A section of the page that a part of the run supplies: its text, charts and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inheritune.reporting.line_charts import Chart
from inheritune.reporting.table import Table

__all__ = ["Section"]


@dataclass(frozen=True)
class Section:
    """One section.

    A function that takes the record and returns a Section, or None where the record holds nothing
    of it, is all that the page asks for.

    Attributes:
        name: Of the section in links; letters and hyphens.
        title: Its heading.
        text: Sentences below the heading.
        charts: Each becomes a figure on the page, an SVG and a PNG, so its name is a file name.
        tables: Each becomes a table on the page, and a file of each format beside it.
        files: Tables too long for the page: files only.
    """

    name: str
    title: str
    text: Sequence[str] = field(default_factory=list)
    charts: Sequence[Chart] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    files: Sequence[Table] = field(default_factory=list)
