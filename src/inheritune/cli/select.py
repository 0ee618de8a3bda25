"""Define the command select: choose layers by scores on calibration text."""

from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune import api
from inheritune.cli.console import (
    Debug,
    Json,
    TextKeys,
    print_json,
    reported,
    say,
    text_with,
    window_option,
)
from inheritune.cli.model import ReferenceId, Revision
from inheritune.cli.next_step import command

if TYPE_CHECKING:
    from inheritune.analysis.select import LayerSelection

_PANEL = "Calibration text"
_text = partial(typer.Option, rich_help_panel=_PANEL)


def select(
    reference: ReferenceId,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Number of layers to keep; or say it in --select.")
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="block, greedy, influence, angular, norm-ratio, auto (the cheapest of them), or "
            "any selection of inherit, to see its cost.",
        ),
    ] = "auto",
    text: Annotated[
        str | None,
        _text(metavar="PATH", help="Text to train on; default: Python's standard library."),
    ] = None,
    text_keys: TextKeys = None,
    windows: Annotated[int, _text(min=1, help="Number of windows.")] = 32,
    tokens_per_window: Annotated[int | None, window_option(rich_help_panel=_PANEL)] = None,
    bos: Annotated[
        str, _text(help="Begin each window with BOS: auto (as the tokenizer does), yes or no.")
    ] = "auto",
    seed: Annotated[int, _text(min=0, help="Seed of the choice of windows.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep every score in this file, such as selection.json; the same command goes on "
            "from it.",
        ),
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Choose the layers to inherit: those whose absence changes the predictions least."""
    with reported(as_json, debug):
        selection = api.select(
            reference,
            layers,
            select=select,
            text=text_with(text, text_keys),
            windows=windows,
            tokens_per_window=tokens_per_window,
            bos=bos,
            seed=seed,
            out=out,
            revision=revision,
        )
        if as_json:
            print_json(selection.as_json())
            return
        _show(selection)
        if out is not None:
            say(f"{out}: the scores of all {len(selection.table.cuts)} cuts.")
        listed = selection.choices[-1].listed
        say(f"next: {command('inherit', reference, listed, 'OUT', revision=revision)}")


def _show(selection: "LayerSelection") -> None:
    from inheritune.reporting.quantities import formatted
    from inheritune.reporting.table import Column, Table
    from inheritune.system.terminal import Terminal

    console = Terminal()
    count, length = selection.sequences.ids.shape
    console.print(f"{count} windows of {length} tokens from {selection.sequences.source}")
    signed, rows = formatted("+.3f"), selection.rows()
    removals = [
        (Column("KL", "nats", formatted(".4f")), itemgetter("kl")),
        (Column("loss", "nats", signed), itemgetter("loss")),
    ]
    is_removed = any(row["kl"] is not None for row in rows)
    removal = Table.of(
        "without one layer" if is_removed else "layers",
        rows,
        [
            (Column("layer", show=str), itemgetter("layer")),
            *(removals if is_removed else []),
            (Column("influence", show=formatted(".3f")), itemgetter("influence")),
            (Column("angle", show=formatted(".3f")), itemgetter("angle")),
            (Column("norm ratio", show=formatted(".3f")), itemgetter("norm_ratio")),
            (Column(""), lambda row: "" if row["kept"] else "left out"),
        ],
    )
    choices = Table.of(
        "choices",
        selection.choices,
        [
            (Column("select"), "select"),
            (Column("layers"), "listed"),
            (Column("KL", "nats", formatted(".4f")), "kl"),
            (Column("loss", "nats", signed), "loss"),
        ],
    )
    for table in (removal, choices):
        console.print(table.rich())
