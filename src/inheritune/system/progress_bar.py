"""Draw the progress of a step: a bar on a terminal or in a notebook, lines in a log."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from inheritune.system.progress import Listener, Progress
from inheritune.system.terminal import Terminal

_LINE_EVERY_S = 30.0  # in a log
_WIDE = 120  # columns of a terminal that has room for a bar
_DRAW_EVERY_S = 0.2  # in a notebook


@contextmanager
def progress_bar() -> Iterator[Listener]:
    """Yield a listener that draws on stderr, or in a notebook's cell, while the block runs.

    A live bar needs a terminal and no `CI` in the environment; elsewhere there are lines.
    """
    console = Terminal(stderr=True)
    if console.is_jupyter:
        yield _NotebookBar()
    elif console.is_terminal and not os.environ.get("CI"):
        bars = Bars(*_columns(console.width), console=console, transient=True)
        with bars:
            yield _Bar(bars)
    else:
        yield _Lines(console)


def _columns(width: int) -> list[ProgressColumn]:
    """Choose what a line shows: a bar and times where there is room, else the figures alone."""
    if width < _WIDE:
        return [_Figures(width)]
    facts = TextColumn("{task.fields[facts]}", markup=False)
    percent = TextColumn("{task.percentage:>3.0f}%")
    name = TextColumn("{task.description:<24}", markup=False)
    return [name, BarColumn(bar_width=16), percent, facts, TimeRemainingColumn(compact=True)]


class _Figures(ProgressColumn):
    """Share and facts of a task, and as much of its name as fits beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def render(self, task: Task) -> Text:
        """Write the line of a task."""
        share = "" if task.total is None else f"{task.percentage:.0f} %"
        figures = " · ".join(filter(None, [share, task.fields["facts"]]))
        room = max(0, self._width - len(figures) - 4)
        name = task.description
        if len(name) > room:
            name = f"{name[: room - 1]}…" if room > 1 else ""
        return Text("  ".join(filter(None, [name, figures])), no_wrap=True, overflow="ellipsis")


class _NotebookBar:
    """An HTML bar in the cell's output, which needs no widgets; rich's own needs ipywidgets."""

    def __init__(self) -> None:
        self._display: Any = None
        self._task, self._drawn_at = "", 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        ended = progress.done >= progress.total
        if progress.task == self._task and not ended and now - self._drawn_at < _DRAW_EVERY_S:
            return
        self._task, self._drawn_at = progress.task, now
        bar = f'<progress value="{progress.done}" max="{progress.total}"></progress> '
        text = ", ".join(filter(None, [progress.task, progress.message, _facts(progress)]))
        self._show((bar if progress.total else "") + escape(text))

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display

        if self._display is None:
            self._display = display(HTML(html), display_id=True)
        else:
            self._display.update(HTML(html))


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
        if not progress.total and progress.message:
            return
        if self._task is None or self._task[0] != progress.task:
            # The bar of what has ended must not stand at 100 % while something else goes on.
            if self._task is not None:
                self._bars.remove_task(self._task[1])
            self._task = (progress.task, self._bars.add_task(progress.task, total=None, facts=""))
        if not progress.total:
            return
        task = self._task[1]
        if self._bars.tasks[-1].total is None:
            # What a checkpoint brings along was not done now: the speed must not count it.
            self._bars.update(task, completed=progress.done)
            self._bars.reset(task, completed=progress.done, total=progress.total)
        self._bars.update(task, completed=progress.done, facts=_facts(progress, " · "))


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
        elif progress.total and now - self._printed >= _LINE_EVERY_S:
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


def _facts(progress: Progress, between: str = ", ") -> str:
    return between.join(f"{name} {value}" for name, value in progress.facts.items())
