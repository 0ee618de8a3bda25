"""Define the commands report and watch."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from inheritune import api
from inheritune.cli.completion import runs as known_runs
from inheritune.cli.console import Debug, Json, print_json, reported, say
from inheritune.errors import DataError, RecipeError

if TYPE_CHECKING:
    from inheritune.reporting.live_text import Status


_COMPARISON = Path("report-comparison/index.html")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories; several are compared.",
            autocompletion=known_runs,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help=f"Page that compares several runs; default: {_COMPARISON}.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the page, figures and card of a run again, or compare several runs."""
    with reported(as_json, debug):
        if len(runs) > 1:
            comparison = api.compare(runs, out or _COMPARISON)
            if as_json:
                print_json({"report": str(comparison.page), "runs": comparison.rows()})
                return
            say(f"wrote {comparison.page}: {len(runs)} runs side by side")
            say(f"next: open {comparison.page}")
            return
        if out is not None:
            raise RecipeError(
                "--out is for comparing several runs; the report of one run is in its directory.",
                "Leave it out, or give more runs.",
            )
        run = runs[0]
        page = api.report(run)
        if as_json:
            paths = {"run": str(run), "target": str(run / "target"), "report": str(page)}
            print_json(_result_of(run) | paths)
            return
        say(f"wrote {page}")
        say(f"next: open {page}")


def _result_of(run: Path) -> dict[str, Any]:
    from inheritune.run_record.record import read_run_json

    try:
        return read_run_json(run).get("result") or {}
    except DataError:  # the page explains it
        return {}


_EVERY_S = 2.0
_PLAIN_EVERY_S = 30.0  # where there is no terminal


def watch(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory.", autocompletion=known_runs)
    ],
    as_text: Annotated[
        bool, typer.Option("--text", help="Show the status on this terminal, such as over SSH.")
    ] = False,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65_535,
            help="Port on 127.0.0.1; if it is taken, the next free one.",
        ),
    ] = 8642,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow a run live: its report in a browser, or its status as text. Ctrl-C ends it."""
    with reported(as_json, debug):
        from inheritune.run_directory import Run
        from inheritune.run_record.record import read_run_json

        if not run.is_dir():
            read_run_json(run)  # raises an error that explains it
        Run.open(run)
        try:
            if as_text:
                _on_terminal(run, as_json)
            else:
                _in_browser(run, port, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _in_browser(run: Path, port: int, as_json: bool) -> None:
    from inheritune.reporting.live_server import Latest, live_page, open_server

    with open_server(port, Latest(run, live_page).current) as server:
        if as_json:
            print_json({"run": str(run), "url": server.url})
            sys.stdout.flush()  # the reader needs the address before the command ends
        say(f"{run} is shown at {server.url}")
        say("Keep the address to yourself: it gives access to the run. Ctrl-C ends the watch.")
        server.serve_forever(poll_interval=0.2)


def _on_terminal(run: Path, as_json: bool) -> None:
    from inheritune.reporting.live_server import Latest
    from inheritune.reporting.live_text import status_of
    from inheritune.system.terminal import Terminal

    if as_json:
        status = status_of(run)
        print_json({"run": str(run), "outcome": status.outcome, "lines": status.lines})
        return
    latest = Latest(run, status_of)
    console = Terminal()
    if not console.is_terminal or os.environ.get("CI"):
        _as_lines(console, latest.current)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = latest.current()
            clock = Text(time.strftime("%H:%M:%S, Ctrl-C ends the watch"), style="dim")
            shown = [Text(line) for line in status.lines]
            live.update(Group(*shown, *([] if status.ended else [Text(), clock])), refresh=True)
            if status.ended:
                return
            time.sleep(_EVERY_S)


def _as_lines(console: Console, current: "Callable[[], Status]") -> None:
    """Print the status if it has changed, at most every half minute; for logs."""
    before: list[str] = []
    while True:
        status = current()
        if status.lines != before:
            before = status.lines
            console.print("\n".join([time.strftime("%H:%M:%S"), *before]), soft_wrap=True)
        if status.ended:
            return
        next_print = time.monotonic() + _PLAIN_EVERY_S
        while time.monotonic() < next_print and not current().ended:
            time.sleep(_EVERY_S)
