"""How progress and results look on a terminal, and where there is none."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table as Grid

from inheritune.system.progress import Listener, Progress

if TYPE_CHECKING:
    from inheritune.cli.plan_text import Page

__all__ = ["listening", "show_page", "show_record"]

_PLAIN_EVERY_S = 30.0


@contextmanager
def listening(console: Console) -> Iterator[Listener]:
    """A listener that draws on a console for as long as the block runs.

    Args:
        console: Of stderr. A live bar needs a terminal, and no `CI` in the environment.
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


def show_record(console: Console, record: Mapping[str, Any]) -> None:
    """Print what a run came to: verdict, table of variants, what to know, samples.

    Args:
        console: Of stdout.
        record: run.json of a run that is done.
    """
    from inheritune.reporting.verdict import remarks, verdict

    console.print()
    console.print(verdict(record), style="bold")
    console.print()
    console.print(_table(record))
    console.print()
    for remark in remarks(record):
        console.print(f"- {remark}")
    for sample in record.get("samples") or []:
        console.print(f"\n{sample['model']} continues:", style="bold")
        console.print((sample["prompt"] + sample["text"]).rstrip())
    console.print()


def show_page(console: Console, page: "Page") -> None:
    """Print a plan: title, table, lines."""
    console.print(page.title, style="bold")
    if page.rows:
        console.print(_grid(page.headers, page.rows, page.last_is_text))
    if page.times:
        console.print(_grid(page.times[0], page.times[1:], False))
    for line in page.lines:
        console.print(line)


def _grid(headers: Sequence[str], rows: Sequence[Sequence[str]], last_is_text: bool) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    of_words = len(headers) - 1 if last_is_text else 0
    for place, header in enumerate(headers):
        grid.add_column(header, justify="left" if place == of_words else "right")
    for row in rows:
        grid.add_row(*row)
    return grid


def _table(record: Mapping[str, Any]) -> Grid:
    """Reference, every round, every control; narrow enough for 80 columns."""
    from inheritune.reporting.quantities import amount, duration, loss, signed

    grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("", max_width=24)
    several = any(row.get("num_seeds", 1) > 1 for row in record["variants"])
    middle = ("val_loss", "sd (seeds)", "vs ref.") if several else ("val_loss", "vs reference")
    for header in ("layers", "size", *middle, "tokens", "time"):
        grid.add_column(header, justify="right", no_wrap=True)
    variants = record["variants"]
    rounds = [row | {"name": f"{row['name']}, round {row['round']}"} for row in record["rounds"]]
    target = record["rounds"][0]["name"]
    controls = [
        row | ({"name": f"{target}, all seeds"} if row["name"] == target else {})
        for row in variants[1:]
        if row["name"] != target or row.get("num_seeds", 1) > 1
    ]
    for row in [variants[0], *rounds, *controls]:
        grid.add_row(
            row["name"],
            str(row["layers"]),
            amount(row["params"]),
            loss(row["val_loss"]),
            *([_spread(row)] if several else []),
            signed(row.get("difference")),
            amount(row["tokens"]),
            duration(row["seconds"]),
        )
    return grid


def _spread(row: Mapping[str, Any]) -> str:
    from inheritune.reporting.quantities import loss

    count = row.get("num_seeds", 1)
    return "1 seed" if count == 1 else f"{loss(row['val_loss_sd'])} ({count})"


class _Bar:
    """One bar, for the task that runs; events stay above it as lines."""

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
            # What a checkpoint brings along was not done now: the speed must not count it.
            self._bars.update(task, completed=progress.done)
            self._bars.reset(task, completed=progress.done, total=progress.total)
            self._task = (progress.task, task)
        self._bars.update(self._task[1], completed=progress.done, facts=_facts(progress))


class _Lines:
    """A line at each event, and every half minute in between."""

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
            known = [share, _facts(progress), self._eta(progress, now)]
            self._print(f"{text}: {', '.join(filter(None, known))}")

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
