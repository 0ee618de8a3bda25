"""The command that writes pages, tables and figures."""

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.console import Debug, Json, print_json, reported, say

__all__ = ["report"]

_COMPARISON = Path("report-comparison/index.html")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help=f"Where the page that compares several goes; default: {_COMPARISON}"
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write page, figures and card of a run again, from its record; several are compared."""
    with reported(as_json, debug):
        from inheritune.errors import RecipeError

        if len(runs) > 1:
            _compare(runs, out or _COMPARISON, as_json)
            return
        if out is not None:
            raise RecipeError(
                "--out is for the page that compares several runs; that of one run is in it.",
                "Leave it out, or name more runs.",
            )
        _report_one(runs[0], as_json)


def _report_one(run: Path, as_json: bool) -> None:
    from inheritune.errors import DataError
    from inheritune.publishing.card import write_card
    from inheritune.reporting.page import write_report
    from inheritune.reporting.record import read_record

    page = write_report(run)
    try:
        write_card(run)
    except DataError as error:  # the page says so
        say(f"warning: the card of the target is left as it is: {error.message}")
    if as_json:
        here = {"run": str(run), "target": str(run / "target"), "report": str(page)}
        try:
            result = read_record(run).get("result") or {}
        except DataError:  # the page says so
            result = {}
        print_json(result | here)
    else:
        say(f"{page} is written.")
        say(f"next: open {page}")


def _compare(runs: list[Path], out: Path, as_json: bool) -> None:
    from inheritune.reporting.comparison import write_comparison

    compared = write_comparison(runs, out)
    if as_json:
        rows = [{"run": str(run), **vars(one)} for run, one in zip(runs, compared, strict=True)]
        print_json({"report": str(out), "runs": rows})
    else:
        say(f"{out} is written: {len(runs)} runs side by side.")
        say(f"next: open {out}")
