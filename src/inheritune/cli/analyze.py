"""Define the command analyze: attention rank and mass, and importance of layers."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune import api
from inheritune.cli.completion import models
from inheritune.cli.console import (
    Debug,
    Json,
    TextKeys,
    print_json,
    reported,
    say,
    text_with,
)
from inheritune.cli.next_step import command
from inheritune.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from inheritune.analysis.analyze import Analysis, LayerAnalysis, ModelAnalysis


_sequence = partial(typer.Option, rich_help_panel="Sequences")


def analyze(
    model: Annotated[
        str, typer.Argument(help="Hub id, model directory or embedded:demo.", autocompletion=models)
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Model that was made from MODEL, to compare."),
    ] = None,
    tokens: Annotated[
        Path | None,
        _sequence(
            metavar="DIR", help="Draw sequences from the validation set of this token directory."
        ),
    ] = None,
    text: Annotated[
        str | None,
        _sequence(
            metavar="FILE", help="Text to draw sequences from; default: Python's standard library."
        ),
    ] = None,
    text_keys: TextKeys = None,
    sequences: Annotated[int, _sequence(min=1, help="Number of sequences.")] = 100,
    tokens_per_sequence: Annotated[int, _sequence(min=2, help="Tokens of each sequence.")] = 100,
    threshold: Annotated[
        float,
        typer.Option(
            help="Share of the squared singular values that an attention rank must reach."
        ),
    ] = 0.9,
    bos: Annotated[
        str,
        _sequence(help="Begin each sequence with BOS: auto (as the tokenizer does), yes or no."),
    ] = "auto",
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum",
            help="Also compute the singular values of the weights; slow for large matrices.",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write the result to.")] = Path(
        "analysis.json"
    ),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure attention rank and mass and the importance of each layer; suggest a size."""
    with reported(as_json, debug):
        from inheritune.system.files import write_json

        if out.is_dir():
            raise RecipeError(f"--out {out} is a directory.", "Name a file.")
        analysis = api.analyze(
            model,
            against=against,
            tokens=tokens,
            text=text_with(text, text_keys),
            sequences=sequences,
            tokens_per_sequence=tokens_per_sequence,
            threshold=threshold,
            bos=bos,
            spectrum=spectrum,
        )
        record = analysis.as_json()
        write_json(out, record)
        if as_json:
            print_json(record)
            return
        _show(analysis)
        say(f"{out}: rank and mass of every head.")
        say(f"next: {command('inherit', model, analysis.advice.advice, 'OUT')}")


# --- Output ---------------------------------------------------------------------------------


def _show(analysis: "Analysis") -> None:
    from inheritune.system.terminal import Terminal

    console = Terminal()
    sequences = analysis.sequences
    count, length = sequences.ids.shape
    console.print(
        f"{count} sequences of {length} tokens from {sequences.source}, "
        f"{'without BOS' if sequences.bos is None else 'each after BOS'}"
    )
    for model in analysis.models:
        _show_model(console, model)
    advice = analysis.advice
    console.print(
        f"\nlayers to start with: paper {advice.paper}, advice {advice.advice} ({advice.reason})"
    )
    known_forms = "; ".join(
        f"{name} {form['rank']} and {form['mass']}" for name, form in analysis.calibration.items()
    )
    console.print(
        f"rank: singular values needed for {analysis.threshold:.0%} of their sum of squares, of "
        "the head that needs the most; lazy: rank 1 on every sequence. mass: columns that hold "
        f"90% of the squared norm. For comparison: {known_forms}."
    )


def _show_model(console: "Console", model: "ModelAnalysis") -> None:
    from inheritune.reporting.quantities import formatted
    from inheritune.reporting.table import Column, Table

    attention = model.attention
    console.print(
        f"\n{model.role} {model.name}: {len(attention.lazy_layers)} of {model.total} layers lazy, "
        f"mean rank {attention.mean_rank:.2f}, "
        f"{attention.heads_near_one:.0%} of the heads below rank 1.5",
        style="bold",
    )
    table = Table.of(
        "layers",
        model.layers,
        [
            (Column("layer", show=str), "layer"),
            (Column("rank", show=formatted(".2f")), "rank"),
            (Column("mass", show=formatted(".2f")), "mass"),
            (Column("sink", show=formatted(".2f")), "sink"),
            (Column("heads < 1.5", show=formatted(".0%")), "heads_near_one"),
            (Column("influence", show=formatted(".3f")), "influence"),
            (Column("angle", show=formatted(".3f")), "angle"),
            (Column("loss without", show=formatted("+.3f")), "removal_loss"),
            (Column(""), _laziness),
        ],
    )
    console.print(table.rich())


def _laziness(layer: "LayerAnalysis") -> str:
    return "no attention" if layer.rank is None else "lazy" if layer.lazy else ""
