"""The command line: one command per step, a few lines each around a library call."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from inheritune.cli import analyze as analyze_commands
from inheritune.cli import evaluate as evaluate_commands
from inheritune.cli import model as model_commands
from inheritune.cli import push as hub_commands
from inheritune.cli import report as report_commands
from inheritune.cli import report as watch_commands
from inheritune.cli import tokens as data_commands
from inheritune.cli import train as train_commands
from inheritune.cli.console import (
    DEFAULT_RUNS,
    AllowChange,
    Debug,
    From,
    Json,
    NumberOfProcesses,
    Runs,
    Scale,
    Sets,
    UsageAsJson,
    print_json,
    progress,
    reported,
    say,
)
from inheritune.cli.train import Asked
from inheritune.errors import NOT_MATCHED_EXIT_CODE

if TYPE_CHECKING:
    from inheritune.recipe.schema import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="inheritune",
    cls=UsageAsJson,
    help="Make a large language model small: inherit its first layers, train, grow until matched.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        for name in ("inheritune", "torch", "transformers"):
            print(name, version_of(name))
        raise typer.Exit


@app.command()
def run(
    recipe: RecipePath,
    processes: NumberOfProcesses = 1,
    allow_change: AllowChange = None,
    checkpoint: From = None,
    sets: Sets = None,
    scale: Scale = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do the whole method by a recipe, or continue it where it was stopped."""
    with reported(as_json, debug):
        from inheritune.recipe.load import read_recipe
        from inheritune.run.execute import execute

        wanted = read_recipe(recipe, sets or [])
        if scale is not None:
            from inheritune.planning.scale import scale_file

            wanted = scale_file(wanted, scale)
            say(wanted.scaled)
        root, allowed = runs / wanted.recipe.name, allow_change or []
        if processes > 1:
            asked = Asked(processes, allowed, checkpoint, sets or [], as_json, debug)
            smaller = ["--scale", str(scale)] if scale is not None else []
            asked.launch(["run", str(recipe), "--runs", str(runs), *smaller], root)
        with progress() as on_progress:
            result = execute(wanted, root, on_progress, allowed=allowed, checkpoint=checkpoint)
        if result is not None:  # the first process has it
            _show_result(root, result.summary, as_json, f"inheritune report {root}")
            raise typer.Exit(NOT_MATCHED_EXIT_CODE if result.is_missed else 0)


@app.command()
def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="PATH", help="Your own text instead; may be repeated."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the reference here, too.")
    ] = False,
    sets: Sets = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The method in minutes, on a small reference that comes with the package."""
    with reported(as_json, debug):
        from inheritune.recipe.load import read_recipe
        from inheritune.recipe.presets import preset_path
        from inheritune.run.execute import execute

        preset = "demo-from-scratch" if from_scratch else "demo"
        own_text = []
        if text:  # another name, so that it does not meet the run of the plain demo
            sources = json.dumps([str(path) for path in text], ensure_ascii=False)
            own_text = [f"data.source={sources}", "data.allow_repeat=true", "data.split_by=text"]
            own_text.append(f"name={preset}-own-text")
        wanted = read_recipe(preset_path(preset), [*own_text, *(sets or [])])
        root = runs / wanted.recipe.name
        if not as_json:
            say(_intro(wanted.recipe))
        with progress() as on_progress:
            # The demo has done its job whichever way the answer falls.
            result = execute(wanted, root, on_progress, must_match=False)
        copy = f"inheritune init --preset {preset} > recipe.yaml"
        if result is not None:
            next_command = f"{copy}   # then: inheritune run recipe.yaml"
            _show_result(root, result.summary, as_json, next_command)


for _command in (
    model_commands.plan,
    model_commands.inherit,
    model_commands.verify,
    model_commands.convert,
    analyze_commands.analyze,
    data_commands.prepare,
    data_commands.inspect,
    train_commands.train,
    evaluate_commands.evaluate,
    report_commands.report,
    watch_commands.watch,
    hub_commands.push,
):
    app.command()(_command)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Look at this machine: versions, device, disk. Ends with 0 or 4."""
    with reported(as_json, debug):
        from dataclasses import asdict

        from inheritune.cli.doctor import diagnose

        findings = diagnose()
        if as_json:
            print_json([asdict(finding) for finding in findings])
        else:
            table = RichTable(box=None, show_header=False, pad_edge=False)
            for finding in findings:
                hint = finding.hint and f"  {finding.hint}"
                table.add_row("ok" if finding.ok else "no", finding.name, f"{finding.value}{hint}")
            Console(highlight=False, markup=False).print(table)
        fine = all(finding.ok for finding in findings)
        if not as_json:
            say("next: inheritune demo" if fine else "mend the lines marked no, then try again")
        raise typer.Exit(0 if fine else 4)


@app.command()
def init(
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="Which; see --list.")
    ] = "demo",
    names: Annotated[bool, typer.Option("--list", help="Print the presets' names.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a commented recipe to start from."""
    with reported(as_json, debug):
        from inheritune.recipe.load import recipe_schema
        from inheritune.recipe.presets import commented_recipe, preset_names

        if schema:
            print_json(recipe_schema())
        elif names:
            print(json.dumps(preset_names()) if as_json else "\n".join(preset_names()))
        elif as_json:
            print_json({"preset": preset, "recipe": commented_recipe(preset)})
        else:
            print(commented_recipe(preset), end="")


# -- what people see at the end


def _intro(recipe: "Recipe") -> str:
    kept = "the first half" if recipe.inherit.layers is None else f"{recipe.inherit.layers}"
    source = recipe.reference.model or "a reference trained here"
    said = (
        f"Inheriting {kept} of the layers of {source}, training on {recipe.data.source}, "
        f"growing by {recipe.grow.add} until its val_loss is matched. Ctrl-C saves and stops."
    )
    if recipe.reference.train is not None:
        said += (
            "\nA reference trained this briefly is hardly better than a shallow model: this shows "
            "what a warm start is worth and what it costs, not that layers can be saved."
        )
    return said


def _show_result(root: Path, final: dict[str, Any], as_json: bool, next_command: str) -> None:
    if as_json:
        print_json(final)
        return
    from inheritune.cli.terminal import show_record
    from inheritune.run_directory import Run

    show_record(Console(highlight=False, markup=False), Run(root).read())
    say(f"target: {final['target']}   report: {final['report']}")
    say(f"next: {next_command}")
