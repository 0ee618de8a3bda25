"""Define the command plan: estimate a cut or a recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from inheritune import api
from inheritune.cli.completion import devices as known_devices
from inheritune.cli.completion import references
from inheritune.cli.console import (
    DEFAULT_RUNS,
    Debug,
    Json,
    Runs,
    Scale,
    Sets,
    load_recipe,
    print_json,
    reported,
    say,
)
from inheritune.cli.model import Revision
from inheritune.cli.next_step import command
from inheritune.errors import MachineError, RecipeError, SourceError
from inheritune.system.devices import DEFAULT_MFU

_USUAL = {"devices": "1", "mfu": DEFAULT_MFU}
_estimate = partial(typer.Option, rich_help_panel="Estimate")
_goal = partial(typer.Option, rich_help_panel="Goal")


def plan(
    source: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE|RECIPE",
            autocompletion=references,
            help="Model to cut (as for inherit), or a recipe: a YAML file or a preset.",
        ),
    ],
    layers: Annotated[
        str | None,
        typer.Argument(
            metavar="LAYERS", help="Layers of one cut to show in detail, as for inherit."
        ),
    ] = None,
    revision: Revision = None,
    tokens: Annotated[
        str | None, _estimate(help="Training tokens to estimate, such as 1B.")
    ] = None,
    seq_len: Annotated[int | None, _estimate(min=1, help="Tokens per sequence.")] = None,
    device: Annotated[
        str | None,
        _estimate(autocompletion=known_devices, help="Device: h100, a100, rtx4090, cpu, ..."),
    ] = None,
    devices: Annotated[
        str, _estimate(help="Number of devices; of a recipe also a range, such as 8..1024.")
    ] = "1",
    mfu: Annotated[
        float, _estimate(help="Share of the device's peak FLOP/s that training reaches.")
    ] = DEFAULT_MFU,
    rate: Annotated[float | None, _estimate(help="Dollars per hour of one device.")] = None,
    mtbf: Annotated[
        float | None, _estimate(help="Hours between failures of one device (50,000).")
    ] = None,
    network: Annotated[
        float | None, _estimate(help="Bytes per second between machines, per device (40e9).")
    ] = None,
    parameters: Annotated[
        str | None, _goal(help="The most layers with at most so many parameters, such as 5B.")
    ] = None,
    memory: Annotated[
        str | None, _goal(help="With at most so many bytes of weights and cache, such as 8GB.")
    ] = None,
    speed: Annotated[
        str | None,
        _goal(help="With so many times the reference's speed (estimated), such as 1.3x."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Also print what the figures are made of.")
    ] = False,
    sets: Sets = None,
    scale: Scale = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Estimate size, time and cost of a cut or a recipe, without running it."""
    with reported(as_json, debug):
        from inheritune.recipe.presets import preset_names
        from inheritune.recipe.sections import is_recipe

        subject: str | api.RecipeFile = source
        if is_recipe(source) or source in preset_names():
            subject = load_recipe(source, sets, scale)
        elif sets or scale is not None:
            option = "--set" if sets else "--scale"
            raise RecipeError(f"{option} goes with a recipe, not with a model.", "Leave it out.")
        estimate: dict[str, Any] = {"tokens": tokens, "seq_len": seq_len, "device": device}
        estimate |= {"devices": devices, "mfu": mfu, "rate": rate}
        estimate |= {"mtbf": mtbf, "network": network}
        with _preset_suggested(subject):
            result = api.plan(
                subject,
                layers,
                revision=revision,
                **estimate,
                parameters=parameters,
                memory=memory,
                speed=speed,
                runs=runs,
                progress=False,
            )
        if as_json:
            print_json(result.as_json())
            return
        from inheritune.cli.plan_answers import answers, warnings
        from inheritune.cli.plan_text import candidates_table, cut_table, recipe_tables
        from inheritune.cli.terminal import show_table
        from inheritune.system.terminal import Terminal

        if isinstance(result, api.Candidates):
            tables = [candidates_table(result)]
            given = {key: value for key, value in estimate.items() if value != _USUAL.get(key)}
            proposed = result.proposed.layers
            next_step = command("plan", source, proposed, revision=revision, **given)
        elif isinstance(result, api.CutPlan):
            tables = [cut_table(result)]
            chosen = layers or result.candidate.layers
            next_step = command("inherit", source, chosen, "OUT", revision=revision)
            if result.table.notes:
                next_step = "download the weights of the reference, then plan again"
        else:
            tables = recipe_tables(result)
            next_step = command("run", source, set=sets, scale=scale, runs=runs)
        terminal = Terminal()
        for line in answers(result):
            terminal.print(line)
        for table in tables:
            show_table(terminal, table if show_all else replace(table, notes=()))
        if not show_all:
            for line in warnings(result):
                terminal.print(line)
            say("--all explains the figures.")
        say(f"next: {next_step}")


@contextmanager
def _preset_suggested(subject: "str | api.RecipeFile") -> Iterator[None]:
    """Where there is no such model, name the preset that is written like it."""
    from inheritune.recipe.presets import nearest_preset

    try:
        yield
    except (MachineError, SourceError) as error:
        close = nearest_preset(subject) if isinstance(subject, str) else None
        if close is None:
            raise
        raise type(error)(error.message, f"{error.hint} Or the preset {close}?") from error
