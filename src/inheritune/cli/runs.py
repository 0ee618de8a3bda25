"""Define the commands runs and clean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inheritune.cli.completion import runs as known_runs
from inheritune.cli.console import DEFAULT_RUNS, Debug, Json, print_json, reported, say
from inheritune.cli.next_step import command

if TYPE_CHECKING:
    from inheritune.run.listing import RunList


def runs(
    parent: Annotated[
        Path, typer.Argument(metavar="DIR", help="Parent directory of the runs.")
    ] = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List runs with their state, loss and size."""
    with reported(as_json, debug):
        from inheritune import api

        listed = api.list_runs(parent)
        if as_json:
            print_json(listed.rows())
        elif listed.runs:
            _show(listed)
        else:
            say(f"there is no run in {parent}")
            say(f"next: {command('demo', runs=parent)}")


def _show(listed: "RunList") -> None:
    from inheritune.cli.terminal import show_table
    from inheritune.reporting.quantities import data_size, exact, loss
    from inheritune.reporting.table import Column, Table

    columns = [
        Column("run"),
        Column("state"),
        Column("layers", show=exact),
        Column("val_loss", show=loss),
        Column("reference loss", show=loss),
        Column("size", show=data_size),
    ]
    keys = ("state", "layers", "val_loss", "reference_loss", "bytes")
    values = [[Path(row["run"]).name, *(row[key] for key in keys)] for row in listed.rows()]
    show_table(Console(), Table("runs", columns, values, []))
    if spare := [entry.run for entry in listed.runs if entry.spare_bytes]:
        total = data_size(sum(entry.spare_bytes for entry in listed.runs))
        say(f"{total} are checkpoints of finished runs")
        say(f"next: {command('clean', *spare)}")


def clean(
    run: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Directories of finished runs.", autocompletion=known_runs
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete checkpoints of finished runs; results, models and pages stay.

    The end of the last round stays where the target has not matched, so that it can still grow.
    """
    with reported(as_json, debug):
        from inheritune import api
        from inheritune.reporting.quantities import data_size

        freed = api.clean(run)
        if as_json:
            print_json(freed)
            return
        for path, size in freed.items():
            say(f"{path}: {data_size(size)} freed")
