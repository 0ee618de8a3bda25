"""Draw progress bars, tables and results on a terminal, or as plain lines without one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.segment import Segment

from inheritune.errors import visible
from inheritune.reporting.run_tables import summary_table
from inheritune.reporting.table import Table
from inheritune.run_record import RunRecord
from inheritune.system.progress import Listener, Progress

__all__ = ["Terminal", "listening", "show_record", "show_table"]

_PLAIN_EVERY_S = 30.0


class Terminal(Console):
    """A console that escapes control characters in all it prints, whoever's text it is."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Render as `Console` does; its own control sequences stay."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)


@contextmanager
def listening(console: Console) -> Iterator[Listener]:
    """Give a listener that draws progress on a console while the block runs.

    It draws a live bar on a terminal, and prints lines if there is none or `CI` is set.
    """
    if console.is_terminal and not os.environ.get("CI"):
        bars = Bars(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        with bars:
            yield _Bar(bars)
    else:
        yield _Lines(console)


def show_record(console: Console, record: RunRecord) -> None:
    """Print the outcome of a finished run: verdict, table of variants, remarks, samples.

    Args:
        console: Writes to stdout.
        record: The content of run.json.
    """
    from inheritune.reporting.verdict import remarks, verdict

    console.print()
    console.print(verdict(record), style="bold")
    console.print()
    console.print(summary_table(record).rich())
    console.print()
    for remark in remarks(record):
        console.print(f"- {remark}")
    for sample in record.samples:
        console.print(f"\n{sample.model} continues:", style="bold")
        console.print(f"{sample.prompt}{sample.text}".rstrip())
    console.print()


def show_table(console: Console, table: Table) -> None:
    """Print a table between its title and its notes."""
    if table.title:
        console.print(table.title, style="bold")
    console.print(table.rich())
    for note in table.notes:
        console.print(note)


class _Bar:
    """Draws one bar for the running task; events stay above it as lines."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: tuple[str, TaskID] | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.message:
            self._bars.console.print(
                f"{progress.task}: {progress.message}", markup=False, highlight=False
            )
        if not progress.total:
            return
        if self._task is None or self._task[0] != progress.task:
            if self._task is not None:
                self._bars.remove_task(self._task[1])
            task = self._bars.add_task(progress.task, total=progress.total, facts="")
            # Steps restored from a checkpoint must not count towards the speed.
            self._bars.update(task, completed=progress.done)
            self._bars.reset(task, completed=progress.done, total=progress.total)
            self._task = (progress.task, task)
        self._bars.update(self._task[1], completed=progress.done, facts=_facts(progress))


class _Lines:
    """Prints a line at each event, and every half minute in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task = ""
        self._began = self._printed = time.monotonic()
        self._done_at_start = 0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.task != self._task:
            self._task, self._began, self._done_at_start = progress.task, now, progress.done
            self._printed = now
        text = f"{time.strftime('%H:%M:%S')} {progress.task}"
        if progress.message:
            self._print(f"{text}: {progress.message}")
        elif progress.total and now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            share = f"{progress.done:,} of {progress.total:,} {progress.unit}"
            parts = [share, _facts(progress), self._eta(progress, now)]
            self._print(f"{text}: {', '.join(filter(None, parts))}")

    def _eta(self, progress: Progress, now: float) -> str:
        done = progress.done - self._done_at_start
        if done <= 0:
            return ""
        left_s = (progress.total - progress.done) * (now - self._began) / done
        return f"{int(left_s // 60)}:{int(left_s % 60):02d} left"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _facts(progress: Progress) -> str:
    return ", ".join(f"{name} {value}" for name, value in progress.facts.items())
