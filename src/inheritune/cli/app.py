"""Define the command line: one command per step, each a few lines around a library call."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from inheritune import api
from inheritune.cli import (
    analyze,
    demo,
    evaluate,
    generate,
    init,
    model,
    patch,
    plan,
    push,
    report,
    runs,
    select,
    tokens,
    train,
)
from inheritune.cli.completion import references
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
    replace_unknown_characters,
    reported,
    say,
)
from inheritune.cli.first_run import (
    Layers,
    MethodName,
    Minutes,
    Name,
    Text,
    Tokens,
    first_run_options,
    opened_recipe,
)
from inheritune.cli.help_text import plain_types
from inheritune.cli.next_step import command, started_processes
from inheritune.cli.outcome import after_run, show_result
from inheritune.cli.train import Launch
from inheritune.errors import NOT_MATCHED_EXIT_CODE
from inheritune.system.refusals import withdrawn_if_refused

app = typer.Typer(
    name="inheritune",
    cls=UsageAsJson,
    help="Make a large language model small: inherit its first layers, train, and grow until it "
    "matches.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|MODEL",
        autocompletion=references,
        help="Recipe: a YAML file or a preset; or, with --text, a model: Hub id, directory or "
        "embedded:demo.",
    ),
]


def main() -> None:
    """Run the command line."""
    replace_unknown_characters()
    app(prog_name="inheritune")  # also for `python -m inheritune`


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print versions of inheritune, torch and transformers."),
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        for name in ("inheritune", "torch", "transformers"):
            print(name, version_of(name))
        raise typer.Exit


def run(
    recipe: RecipeOrModel,
    text: Text = None,
    layers: Layers = None,
    tokens: Tokens = None,
    minutes: Minutes = None,
    name: Name = None,
    method: MethodName = None,
    processes: NumberOfProcesses = 1,
    allow_change: AllowChange = None,
    checkpoint: From = None,
    sets: Sets = None,
    scale: Scale = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe from start to finish, or resume it.

    For a model and a text, a recipe is filled in, written to NAME.yaml and run; the same command
    continues it.
    """
    with reported(as_json, debug):
        options = first_run_options(text, layers, tokens, minutes, name, method)
        before = {*Path().glob("*.yaml")}
        file, own_sets = opened_recipe(recipe, options, sets, scale, runs, processes)
        root = runs / file.recipe.name
        launch = Launch(processes, allow_change or [], checkpoint, own_sets, as_json, debug)
        if processes > 1:
            scaled = ["--scale", str(scale)] if scale is not None else []
            launch.start(["run", str(file.path), "--runs", str(runs), *scaled], root)
        written = [file.path] if text and file.path and file.path not in before else []
        with withdrawn_if_refused(written, unless=root):
            result = api.derive(file, runs=runs, allow_change=launch.allowed, checkpoint=checkpoint)
        if result is not None:  # only the first process has one
            show_result(root, result.summary, as_json)
            if not as_json:
                count = started_processes()
                subject = file.path if text else recipe
                again = partial(command, "run", subject, runs=runs, scale=scale, processes=count)
                say(f"next: {after_run(result, again, own_sets)}")
            raise typer.Exit(NOT_MATCHED_EXIT_CODE if result.is_missed else 0)


def doctor(
    everything: Annotated[
        bool, typer.Option("--all", help="Print every check instead of six lines.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check what this machine is fit for, and how to get what is missing.

    Ends with exit code 0, or 4 if a run would fail here. --json always has every check.
    """
    with reported(as_json, debug):
        from dataclasses import asdict

        from inheritune.cli.doctor import diagnose, findings_table
        from inheritune.cli.fitness import summarize

        findings = diagnose()
        is_fit = all(finding.ok for finding in findings)
        if as_json:
            print_json([asdict(finding) for finding in findings])
        else:
            from inheritune.system.terminal import Terminal

            shown = findings if everything else summarize(findings)
            Terminal().print(findings_table(shown).rich())
            say("next: inheritune demo" if is_fit else "fix the lines marked no, then try again")
        raise typer.Exit(0 if is_fit else 4)


# --- Commands in the order of --help, each with an example -----------------------------------

_COMMANDS: dict[str, dict[Callable[..., None], str]] = {
    "The method": {
        run: "inheritune run recipe.yaml",
        demo.demo: "inheritune demo",
        init.init: "inheritune init --preset gpt2-medium-openwebtext > recipe.yaml",
        plan.plan: "inheritune plan Qwen/Qwen3-0.6B --tokens 1B --device h100",
    },
    "Steps": {
        select.select: "inheritune select Qwen/Qwen3-0.6B --layers 20 --text books.jsonl",
        model.inherit: "inheritune inherit Qwen/Qwen3-0.6B 14 small",
        tokens.prepare: "inheritune prepare recipe.yaml",
        train.train: "inheritune train recipe.yaml --variant scratch",
        evaluate.evaluate: "inheritune evaluate small --tasks piqa,sciq",
        patch.patch: "inheritune patch runs/demo/target embedded:demo 6 larger",
        analyze.analyze: "inheritune analyze Qwen/Qwen3-0.6B --against small",
        model.convert: "inheritune convert old-checkpoint new-model",
    },
    "Results": {
        generate.generate: "inheritune generate runs/demo 'def read_lines(path):'",
        report.report: "inheritune report runs/demo",
        report.watch: "inheritune watch runs/demo",
        runs.runs: "inheritune runs",
        runs.clean: "inheritune clean runs/demo",
        push.push: "inheritune push runs/demo --repo-id me/small --dry-run",
    },
    "Checks": {
        model.verify: "inheritune verify small --reference Qwen/Qwen3-0.6B",
        tokens.inspect: "inheritune inspect runs/demo/tokens",
        doctor: "inheritune doctor",
    },
}
plain_types()
for _panel, _examples in _COMMANDS.items():
    for _command, _example in _examples.items():
        app.command(rich_help_panel=_panel, epilog=f"Example: {_example}")(_command)
