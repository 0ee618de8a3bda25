"""Define the command init: print a preset, the presets, the schema, or a recipe filled in."""

from typing import Annotated

import typer

from inheritune.cli.completion import models, presets
from inheritune.cli.console import Debug, Json, print_json, print_text, reported
from inheritune.cli.first_run import (
    Layers,
    MethodName,
    Minutes,
    Name,
    Text,
    Tokens,
    first_recipe,
    first_run_option,
    first_run_options,
    refuse_without_model,
)
from inheritune.errors import RecipeError


def init(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Preset to print; see --list. Default: demo.",
            autocompletion=presets,
        ),
    ] = None,
    names: Annotated[
        bool, typer.Option("--list", help="List the presets with text, tokens and time.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes.")
    ] = False,
    reference: Annotated[
        str | None,
        first_run_option(
            metavar="MODEL",
            autocompletion=models,
            help="Fill in a recipe for this model and --text, as `run` does: Hub id, directory or "
            "embedded:demo.",
        ),
    ] = None,
    text: Text = None,
    layers: Layers = None,
    tokens: Tokens = None,
    minutes: Minutes = None,
    name: Name = None,
    method: MethodName = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a commented recipe to start from: a preset, or one filled in for a model and a text."""
    with reported(as_json, debug):
        from inheritune.recipe.load import recipe_schema
        from inheritune.recipe.presets import commented_recipe, preset_names

        options = first_run_options(text, layers, tokens, minutes, name, method)
        asked = {"--preset": preset, "--list": names, "--schema": schema, "--reference": reference}
        given = [option for option, value in asked.items() if value not in (None, False)]
        if len(given) > 1:
            raise RecipeError(
                f"{' and '.join(given)} ask for {len(given)} things.", "Give one of them."
            )
        if reference is None:
            refuse_without_model(options)
        if schema:
            print_json(recipe_schema())
            return
        if names:
            value: object = preset_names()
            text_of_value = "\n".join(_preset_lines())
        elif reference is not None:
            text_of_value = first_recipe(reference, options).text
            value = {"reference": reference, "recipe": text_of_value}
        else:
            name_of_preset = "demo" if preset is None else preset
            text_of_value = commented_recipe(name_of_preset)
            value = {"preset": name_of_preset, "recipe": text_of_value}
        if as_json:
            print_json(value)
        else:
            print_text(text_of_value)


def _preset_lines() -> list[str]:
    """Describe each preset in a line: name, text, tokens, and time here and on an H100."""
    from inheritune.recipe.presets import preset_costs
    from inheritune.reporting.quantities import amount, duration
    from inheritune.system.devices import Speed, choose_device

    speeds = [Speed(choose_device(name)) for name in ("cpu", "h100")]
    rows = [("preset", "text", "tokens", "this CPU", "one H100")]
    for name, cost in preset_costs().items():
        hours = [speed.price(cost["flops"]).hours for speed in speeds]
        here, there = (duration(3600 * value) for value in hours)
        rows.append((name, cost["text"], amount(cost["tokens"]), here, there))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True))
        for row in rows
    ]
