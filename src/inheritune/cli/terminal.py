"""Show tables and results on a terminal."""

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from inheritune.reporting.gains_table import gains_sentence, gains_table
from inheritune.reporting.run_tables import summary_table
from inheritune.reporting.table import Table
from inheritune.run_record.record import RunRecord


def show_record(console: Console, record: RunRecord) -> None:
    """Print the outcome of a finished run: verdict, table of variants, remarks, samples."""
    from inheritune.reporting.remarks import remarks
    from inheritune.reporting.verdict import verdict

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
    _show_samples(console, record)
    console.print()


def _show_samples(console: Console, record: RunRecord) -> None:
    """Print what the models wrote: two of them side by side, more below each other."""
    names = list(dict.fromkeys(sample.model for sample in record.samples))
    texts = {(s.prompt, s.model): f"{s.prompt}{s.text}".rstrip() for s in record.samples}
    if len(names) != 2:
        for (_, model), text in texts.items():
            console.print(f"\n{model} continues:", style="bold")
            console.print(text)
        return
    table = Grid(box=None, expand=True, pad_edge=False, padding=(0, 2, 1, 0))
    for name in names:
        table.add_column(Text(f"{name} continues:"), ratio=1)
    for prompt in dict.fromkeys(sample.prompt for sample in record.samples):
        table.add_row(*(Text(texts.get((prompt, name), "")) for name in names))
    console.print()
    console.print(table)


def show_table(console: Console, table: Table) -> None:
    """Print a table between its title and its notes, with as many columns as fit."""
    if table.title:
        console.print(table.title, style="bold")
    console.print(table.fitted(console.width).rich())
    for note in table.notes:
        console.print(note)
