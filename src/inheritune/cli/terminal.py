"""Show tables and results on a terminal."""

from rich.console import Console

from inheritune.reporting.gains_table import gains_sentence, gains_table
from inheritune.reporting.run_tables import summary_table
from inheritune.reporting.table import Table
from inheritune.run_record.record import RunRecord


def show_record(console: Console, record: RunRecord) -> None:
    """Print the outcome of a finished run: verdict, table of variants, remarks, samples."""
    from inheritune.reporting.verdict import remarks, verdict

    console.print()
    console.print(verdict(record), style="bold")
    console.print()
    console.print(summary_table(record).rich())
    console.print()
    for remark in remarks(record):
        console.print(f"- {remark}")
    if record.gains is not None:
        console.print(f"\n{gains_sentence(record.gains)}", style="bold")
        show_table(console, gains_table(record.gains).transposed())
    for sample in record.samples:
        console.print(f"\n{sample.model} continues:", style="bold")
        console.print(f"{sample.prompt}{sample.text}".rstrip())
    console.print()


def show_table(console: Console, table: Table) -> None:
    """Print a table between its title and its notes, with as many columns as fit."""
    if table.title:
        console.print(table.title, style="bold")
    console.print(table.fitted(console.width).rich())
    for note in table.notes:
        console.print(note)
