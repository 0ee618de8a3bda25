"""The command that looks inside models: attention rank and mass, importance of layers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as Grid

from inheritune.cli.console import Debug, Json, print_json, progress, reported, say
from inheritune.errors import DataError, RecipeError

if TYPE_CHECKING:
    from inheritune.analysis.sequences import Sequences
    from inheritune.model_files.directory import ModelDirectory

__all__ = ["analyze"]

_BOS = ("auto", "yes", "no")
_TEXT_IDS = 64  # times as many as are needed are read of a text at most


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
        from inheritune.model_files.directory import open_model
        from inheritune.system.files import write_json

        _check(tokens, text, threshold, bos, out)
        models = [("model", open_model(model))]
        if against is not None:
            models = [("reference", models[0][1]), ("target", open_model(against))]
        opened = [directory for _, directory in models]
        drawn = _draw(opened, tokens, text, (sequences, tokens_per_sequence), bos)
        with progress() as listen:
            found = _look(models, drawn, threshold, listen)
        if spectrum:
            from inheritune.analysis.spectrum import weight_spectrum

            for entry, (_, directory) in zip(found["models"], models, strict=True):
                entry["spectrum"] = weight_spectrum(directory)
        write_json(out, found)
        if as_json:
            print_json(found)
            return
        _show(found)
        say(f"{out} is written: every head, rank and mass.")
        layers = found["advice"]["advice"]
        say(f"next: inheritune inherit {quote(model)} {layers} OUT")


def _check(tokens: Path | None, text: str | None, threshold: float, bos: str, out: Path) -> None:
    if tokens is not None and text is not None:
        raise RecipeError("--tokens and --text are both given.", "Give one of them.")
    if not 0 < threshold < 1:
        raise RecipeError(f"--threshold is {threshold:g}.", "Choose between 0 and 1, such as 0.9.")
    if bos not in _BOS:
        raise RecipeError(f"--bos is {bos!r}.", f"Choose {', '.join(_BOS)}.")
    if out.is_dir():
        raise RecipeError(f"--out {out} is a directory.", "Name a file.")


def _look(
    models: "Sequence[tuple[str, ModelDirectory]]",
    drawn: "Sequences",
    threshold: float,
    listen: Any,
) -> dict[str, Any]:
    from inheritune.steps.analysis import Looks, advice_for, look_at, summary
    from inheritune.system.signals import catch_signals

    with catch_signals() as stop:
        looks = Looks(drawn, threshold, stop=stop, on_progress=listen)
        seen = [look_at(directory, role, looks) for role, directory in models]
    return summary(looks, seen, advice_for(models[0][1], seen[0])) | {"notes": []}


def _draw(
    models: "Sequence[ModelDirectory]",
    tokens: Path | None,
    text: str | None,
    wanted: tuple[int, int],
    bos: str,
) -> "Sequences":
    """The sequences, by the tokenizer that all models share.

    Raises:
        DataError: The models or the tokens are of different tokenizers, or the text is too short.
    """
    from inheritune.analysis.sequences import draw_sequences
    from inheritune.data.tokenizer import open_tokenizer
    from inheritune.data.tokens import open_tokens

    opened = [open_tokenizer(model.path) for model in models]
    for model, tokenizer in zip(models, opened, strict=True):
        if tokenizer.sha256 != opened[0].sha256:
            raise DataError(
                f"{model.name} has another tokenizer than {models[0].name}.",
                "Compare a reference with a target that was made from it.",
            )
    first = opened[0]
    begin = first.bos if bos == "auto" else None
    if bos == "yes":
        begin = first.bos if first.bos is not None else _bos_of(models[0])
    count, length = wanted
    if tokens is not None:
        directory = open_tokens(tokens)
        if directory.manifest["tokenizer"]["sha256"] != first.sha256:
            raise DataError(
                f"{tokens} was prepared with another tokenizer than that of {models[0].name}.",
                "Prepare tokens with the model's own, or give --text FILE.",
            )
        drawn = draw_sequences(directory.val, count, length, begin, str(tokens))
    else:
        ids = _ids_of(text or "stdlib", first, count * length * _TEXT_IDS)
        drawn = draw_sequences(ids, count, length, begin, text or "stdlib")
    if len(drawn.ids) < count:
        raise DataError(
            f"{drawn.source} has {len(drawn.ids)} sequences of {length} tokens, {count} are asked "
            "for.",
            f"Give more text, or --sequences {len(drawn.ids)}."
            if len(drawn.ids)
            else "Give more text, or a smaller --tokens-per-sequence.",
        )
    return drawn


def _bos_of(model: "ModelDirectory") -> int:
    from inheritune.model_files.config import text_config

    found = text_config(model.config).get("bos_token_id")
    if not isinstance(found, int):
        raise DataError(f"{model.name} names no BOS token.", "Leave --bos out.")
    return found


def _ids_of(text: str, tokenizer: Any, most: int) -> Any:
    import numpy as np

    from inheritune.data.sources import open_sources
    from inheritune.data.tokenizer import encode_documents
    from inheritune.recipe.schema import Data

    parts, total = [], 0
    for source in open_sources(Data(source=text)):
        for _, document in source.read():
            parts += list(encode_documents(tokenizer, [document.text]))
            total += len(parts[-1])
            if total >= most:
                return np.concatenate(parts)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


# -- what people see


def _show(found: Mapping[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    drawn = found["sequences"]
    console.print(
        f"{drawn['sequences']} sequences of {drawn['tokens_per_sequence']} tokens from "
        f"{drawn['source']}, {'each after BOS' if drawn['bos'] else 'without BOS'}"
    )
    for model in found["models"]:
        _show_model(console, model)
    advice = found["advice"]
    console.print(
        f"\nlayers to begin with: paper {advice['paper']}, advice {advice['advice']} "
        f"({advice['reason']})"
    )
    known = "; ".join(
        f"{name} {one['rank']} and {one['mass']}" for name, one in found["calibration"].items()
    )
    console.print(
        f"rank: singular values that hold {found['threshold']:.0%} of the square, of the fullest "
        f"head; 1 on every sequence: lazy. mass: columns that hold 90%. For comparison: {known}."
    )


def _show_model(console: Console, model: Mapping[str, Any]) -> None:
    attention, importance = model["attention"], model["importance"]
    console.print(
        f"\n{model['role']} {model['name']}: {len(attention['lazy_layers'])} of {model['layers']} "
        f"layers lazy, mean rank {attention['avg_rank']:.2f}, "
        f"{attention['heads_near_one']:.0%} of the heads below rank 1.5",
        style="bold",
    )
    grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    titles = ("layer", "rank", "mass", "sink", "heads < 1.5", "influence", "angle", "loss without")
    for title in titles:
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("")
    seen = {row["layer"]: row for row in attention["layers"]}
    for row in importance["layers"]:
        of_attention = _attention_cells(seen.get(row["layer"]))
        loss = row["removal_loss"]
        grid.add_row(
            str(row["layer"]),
            *of_attention,
            *("-" if row[key] is None else f"{row[key]:.3f}" for key in ("influence", "angle")),
            "-" if loss is None else f"{loss:+.3f}",
            _remark(seen.get(row["layer"])),
        )
    console.print(grid)


def _remark(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "no attention"
    return "lazy" if row["lazy"] else ""


def _attention_cells(row: Mapping[str, Any] | None) -> tuple[str, ...]:
    if row is None:
        return ("-",) * 4
    return (
        f"{row['max_rank']:.2f}",
        f"{row['avg_mass']:.2f}",
        f"{row['sink_share']:.2f}",
        f"{row['heads_near_one']:.0%}",
    )
