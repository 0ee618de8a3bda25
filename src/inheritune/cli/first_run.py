"""Open the recipe that `run` is given, or have one filled in for a model and a text."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune import api
from inheritune.cli.console import load_recipe, say
from inheritune.cli.next_step import command
from inheritune.errors import RecipeError, escape

if TYPE_CHECKING:
    from inheritune.recipe.load import RecipeFile

first_run_option = partial(typer.Option, rich_help_panel="A model instead of a recipe")

Text = Annotated[
    list[Path] | None,
    first_run_option(
        "--text",
        metavar="PATH",
        help="File, folder or glob of text to train the model on; repeatable.",
    ),
]
Layers = Annotated[
    str | None,
    first_run_option(
        help="Layers of the target: a number of first ones, or any selection as for inherit. "
        "Default: half, and two more if they do not match."
    ),
]
Tokens = Annotated[str | None, first_run_option(help="Training tokens of each round, such as 20M.")]
Minutes = Annotated[
    float | None,
    first_run_option(
        help="Time for all rounds on this machine instead of tokens; its speed is measured first. "
        "Default: 15."
    ),
]
Name = Annotated[str | None, first_run_option(help="Name of the run; default: that of the model.")]
MethodName = Annotated[
    str | None,
    first_run_option(
        "--method",
        metavar="best|paper",
        help="paper: the first layers, trained on text alone; best: layers chosen by scores, the "
        "cut repaired, and trained to predict as the reference does, for about 1.5 times the "
        "compute. Default: best.",
    ),
]

# Keys of a recipe that the options of a first run stand for.
_KEYS = {
    "--text": "data.source",
    "--layers": "inherit.layers",
    "--tokens": "train.tokens",
    "--minutes": "train.tokens",
    "--name": "name",
    "--method": "inherit.select",
}


def first_run_options(
    text: list[Path] | None,
    layers: str | None,
    tokens: str | None,
    minutes: float | None,
    name: str | None,
    method: str | None,
) -> dict[str, Any]:
    """Return the options of a first run by their names."""
    values = (text, layers, tokens, minutes, name, method)
    return dict(zip(_KEYS, values, strict=True))


def refuse_without_model(options: dict[str, Any]) -> None:
    """Refuse options of a first run where no model is named."""
    for option, value in options.items():
        if value is not None:
            raise RecipeError(f"{option} goes with a model.", "Name it: --reference MODEL")


def opened_recipe(
    subject: str,
    options: dict[str, Any],
    sets: Sequence[str] | None,
    scale: float | None,
    runs: Path,
    processes: int,
) -> "tuple[RecipeFile, list[str]]":
    """Read a recipe, or fill in ``NAME.yaml`` for a model and read it at the next start.

    Args:
        subject: A recipe file, a preset, or a model.
        options: Values of the options of a first run by name; None where one is not given.

    Returns:
        The recipe, and the overrides that are not part of its file.

    Raises:
        RecipeError: Options of a first run are given with a recipe, or a model without its text.
    """
    from inheritune.recipe.sections import recipe_path

    path = recipe_path(subject)
    given = [option for option, value in options.items() if value is not None]
    if path is not None:
        if given:
            key = _KEYS[given[0]]
            raise RecipeError(
                f"{given[0]} goes with a model; {escape(subject)} is a recipe.",
                f"Say it by a key: --set {key}=...",
            )
        return load_recipe(path, sets, scale), list(sets or [])
    if options["--text"] is None:
        raise RecipeError(_what_else(subject), "To run a model, name its text: --text PATH")
    if scale is not None:
        raise RecipeError("--scale goes with a recipe.", "Leave it out; --minutes 1 is short, too.")
    if "WORLD_SIZE" in os.environ:
        raise RecipeError(
            "several processes need a recipe that is written already.",
            f"Write it first: {command('init', reference=subject, text=options['--text'])}",
        )
    file = first_recipe(subject, options, sets=sets or (), out=".", runs=runs, processes=processes)
    say(f"recipe: {file.path}   to continue: {command('run', file.path, runs=runs)}")
    return file, []


def first_recipe(model: str, options: dict[str, Any], **others: Any) -> "RecipeFile":
    """Fill in a recipe; see `api.recipe_for`."""
    values = {option.removeprefix("--"): value for option, value in options.items()}
    return api.recipe_for(model, values.pop("text") or [], **values, **others)


def _what_else(subject: str) -> str:
    from inheritune.recipe.presets import nearest_preset

    text = f"{escape(subject)} is neither a recipe file nor a preset."
    close = nearest_preset(subject)
    return f"{text} Did you mean {close}?" if close else text
