"""The command that looks inside models: attention rank and mass, importance of layers."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from inheritune.cli.console import Debug, Json, print_json, progress, reported, say
from inheritune.errors import RecipeError

if TYPE_CHECKING:
    from inheritune.analysis.analyze import Analysis, ModelAnalysis

__all__ = ["analyze"]


def analyze(
    model: Annotated[str, typer.Argument(help="Hub id, model directory, or embedded:demo.")],
    against: Annotated[
        str | None, typer.Option(metavar="TARGET", help="A model made from it, shown beside it.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Tokens made by prepare; their validation set is used."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Text to draw sequences from instead; default: Python's library."
        ),
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    tokens_per_sequence: Annotated[int, typer.Option(min=2, help="Of each.")] = 100,
    threshold: Annotated[
        float, typer.Option(help="Share of the squared singular values that a rank holds.")
    ] = 0.9,
    bos: Annotated[
        str, typer.Option(help="Begin each with BOS: auto (as the tokenizer does), yes or no.")
    ] = "auto",
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Also of the weights; large matrices take long.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the result goes.")] = Path(
        "analysis.json"
    ),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Attention rank and mass of every layer, what each layer does, and how many to inherit."""
    with reported(as_json, debug):
        from inheritune.analysis.analyze import analyze as analyze_models
        from inheritune.analysis.sequences import sequences_for
        from inheritune.model_files.directory import open_model
        from inheritune.system.files import write_json

        if not 0 < threshold < 1:
            hint = "Choose between 0 and 1, such as 0.9."
            raise RecipeError(f"--threshold is {threshold:g}.", hint)
        if out.is_dir():
            raise RecipeError(f"--out {out} is a directory.", "Name a file.")
        models = [("model", open_model(model))]
        if against is not None:
            models = [("reference", models[0][1]), ("target", open_model(against))]
        drawn = sequences_for(
            [directory for _, directory in models],
            sequences,
            tokens_per_sequence,
            tokens=tokens,
            text=text,
            bos=bos,
        )
        with progress() as on_progress:
            analysis = analyze_models(
                models, drawn, threshold=threshold, spectrum=spectrum, on_progress=on_progress
            )
        record = analysis.as_json()
        write_json(out, record)
        if as_json:
            print_json(record)
            return
        _show(analysis)
        say(f"{out} is written: every head, rank and mass.")
        say(f"next: inheritune inherit {quote(model)} {analysis.advice.advice} OUT")


# -- what people see


def _show(analysis: "Analysis") -> None:
    console = Console(highlight=False, markup=False)
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
        f"\nlayers to begin with: paper {advice.paper}, advice {advice.advice} ({advice.reason})"
    )
    known_forms = "; ".join(
        f"{name} {form['rank']} and {form['mass']}" for name, form in analysis.calibration.items()
    )
    console.print(
        f"rank: singular values that hold {analysis.threshold:.0%} of the square, of the fullest "
        f"head; 1 on every sequence: lazy. mass: columns that hold 90%. For comparison: "
        f"{known_forms}."
    )


def _show_model(console: Console, model: "ModelAnalysis") -> None:
    attention = model.attention
    console.print(
        f"\n{model.role} {model.name}: {len(attention.lazy_layers)} of {model.total} layers lazy, "
        f"mean rank {attention.mean_rank:.2f}, "
        f"{attention.heads_near_one:.0%} of the heads below rank 1.5",
        style="bold",
    )
    grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    titles = ("layer", "rank", "mass", "sink", "heads < 1.5", "influence", "angle", "loss without")
    for title in titles:
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("")
    for layer in model.layers:
        remark = "no attention" if layer.rank is None else "lazy" if layer.lazy else ""
        grid.add_row(
            str(layer.layer),
            _cell(layer.rank, ".2f"),
            _cell(layer.mass, ".2f"),
            _cell(layer.sink, ".2f"),
            _cell(layer.heads_near_one, ".0%"),
            _cell(layer.influence, ".3f"),
            _cell(layer.angle, ".3f"),
            _cell(layer.removal_loss, "+.3f"),
            remark,
        )
    console.print(grid)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
