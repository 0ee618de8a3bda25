"""The command line: one command per step, a few lines each around a library call."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table as RichTable

from inheritune.errors import InherituneError

if TYPE_CHECKING:
    from inheritune.recipe import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="inheritune",
    help="Make a large language model small: inherit its first layers, train, grow until matched.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; may be repeated."),
]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept, each under its name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_DEFAULT_RUNS = Path("runs")


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
    sets: Sets = None,
    runs: Runs = _DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do the whole method by a recipe, or continue it where it was stopped."""
    with _errors(as_json, debug):
        from inheritune.execute import execute
        from inheritune.recipe_file import read_recipe

        wanted = read_recipe(recipe, sets or [])
        root = runs / wanted.recipe.name
        with _progress() as listen:
            final, code = execute(wanted, root, listen)
        _show_result(root, final, as_json, f"inheritune report {root}")
        raise typer.Exit(code)


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
    runs: Runs = _DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The method in minutes, on a small reference that comes with the package."""
    with _errors(as_json, debug):
        from inheritune.execute import execute
        from inheritune.presets import preset_path
        from inheritune.recipe_file import read_recipe

        preset = "demo-from-scratch" if from_scratch else "demo"
        own_text = []
        if text:  # another name, so that it does not meet the run of the plain demo
            sources = json.dumps([str(path) for path in text], ensure_ascii=False)
            own_text = [f"data.source={sources}", "data.allow_repeat=true", "data.split_by=text"]
            own_text.append(f"name={preset}-own-text")
        wanted = read_recipe(preset_path(preset), [*own_text, *(sets or [])])
        root = runs / wanted.recipe.name
        if not as_json:
            _say(_intro(wanted.recipe))
        with _progress() as listen:
            # The demo has done its job whichever way the answer falls.
            final, _ = execute(wanted, root, listen, missed_exit_code=0)
        copy = f"inheritune init --preset {preset} > recipe.yaml"
        _show_result(root, final, as_json, f"{copy}   # then: inheritune run recipe.yaml")


@app.command()
def inherit(
    reference: Annotated[str, typer.Argument(help="Hub id, model directory, or embedded:demo.")],
    layers: Annotated[int, typer.Argument(help="How many of its first layers to keep.")],
    out: Annotated[Path, typer.Argument(help="The model directory to write.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the first layers of a model, with all that is outside its layers, as a model."""
    with _errors(as_json, debug):
        from inheritune.checkpoints.source import open_model
        from inheritune.inherit.inherit import inherit as inherit_layers

        source = open_model(reference, revision)
        target = inherit_layers(source, layers, out)
        if as_json:
            _print_json(
                {
                    "target": str(out),
                    "layers": layers,
                    "reference_layers": source.layers,
                    "params": target.params,
                    "digest": target.digest,
                }
            )
        else:
            _say(f"{out}: {layers} of {source.layers} layers, {target.params:,} parameters.")
            _say(f'next: AutoModelForCausalLM.from_pretrained("{out}")')


@app.command()
def prepare(
    recipe: RecipePath,
    sets: Sets = None,
    runs: Runs = _DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a recipe's text into token shards."""
    with _errors(as_json, debug):
        from inheritune.execute import prepare_only
        from inheritune.recipe_file import read_recipe

        wanted = read_recipe(recipe, sets or [])
        with _progress() as listen:
            summary = prepare_only(wanted, runs / wanted.recipe.name, listen)
        if as_json:
            _print_json(summary)
        else:
            _say(
                f"{summary['path']}: {summary['train_tokens']:,} tokens to train on, "
                f"{summary['val_tokens']:,} held out."
            )
            _say(f"next: inheritune run {recipe}")


@app.command()
def train(
    recipe: RecipePath,
    variant: Annotated[
        str | None, typer.Option(help="Which variant of the recipe; default: the target.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="How many layers it has.")] = None,
    sets: Sets = None,
    runs: Runs = _DEFAULT_RUNS,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one variant of a recipe at one size."""
    with _errors(as_json, debug):
        from inheritune.execute import train_only
        from inheritune.recipe_file import read_recipe

        wanted = read_recipe(recipe, sets or [])
        with _progress() as listen:
            trial = train_only(wanted, runs / wanted.recipe.name, variant, layers, listen)
        if as_json:
            _print_json(trial)
        else:
            _say(
                f"{trial['model']}: val_loss {trial['val_loss']:.4f}, "
                f"{trial['difference']:+.4f} against the benchmark."
            )
            _say(f"next: inheritune run {recipe}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the page, tables and figures of a run again, from its record."""
    with _errors(as_json, debug):
        from inheritune.report.page import write_report
        from inheritune.run import Run

        page = write_report(run)
        record = Run(run).read()
        if as_json:
            here = {"run": str(run), "target": str(run / "target"), "report": str(page)}
            _print_json((record.get("result") or {}) | here)
        else:
            _say(f"{page} is written.")
            _say(f"next: open {page}")


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Look at this machine: versions, device, disk. Ends with 0 or 4."""
    with _errors(as_json, debug):
        from dataclasses import asdict

        from inheritune.doctor import diagnose

        findings = diagnose()
        if as_json:
            _print_json([asdict(finding) for finding in findings])
        else:
            table = RichTable(box=None, show_header=False, pad_edge=False)
            for finding in findings:
                hint = finding.hint and f"  {finding.hint}"
                table.add_row("ok" if finding.ok else "no", finding.name, f"{finding.value}{hint}")
            Console(highlight=False, markup=False).print(table)
        fine = all(finding.ok for finding in findings)
        if not as_json:
            _say("next: inheritune demo" if fine else "mend the lines marked no, then try again")
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
    with _errors(as_json, debug):
        from inheritune.presets import commented_recipe, preset_names
        from inheritune.recipe_file import recipe_schema

        if schema:
            _print_json(recipe_schema())
        elif names:
            print(json.dumps(preset_names()) if as_json else "\n".join(preset_names()))
        elif as_json:
            _print_json({"preset": preset, "recipe": commented_recipe(preset)})
        else:
            print(commented_recipe(preset), end="")


# -- what people and programs see


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    from inheritune.terminal import listening

    with listening(Console(stderr=True)) as listen:
        yield listen


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
        _print_json(final)
        return
    from inheritune.run import Run
    from inheritune.terminal import show_record

    show_record(Console(highlight=False, markup=False), Run(root).read())
    _say(f"target: {final['target']}   report: {final['report']}")
    _say(f"next: {next_command}")


@contextmanager
def _errors(as_json: bool, debug: bool) -> Iterator[None]:
    try:
        yield
    except typer.Exit:
        raise
    except InherituneError as error:
        if debug:
            traceback.print_exc()
        _fail(type(error).__name__, error.message, error.hint, error.exit_code, as_json)
    except BrokenPipeError:
        raise  # whoever read stdout has seen enough; typer ends quietly
    except OSError as error:
        if debug:
            traceback.print_exc()
        what = (error.strerror or str(error)).lower()
        hint = "Free some space, or mend the path; then run the same command to continue."
        _fail("MachineError", f"{error.filename or 'the system'}: {what}.", hint, 4, as_json)
    except Exception as error:
        if debug:
            raise
        log = Path("inheritune-error.log")
        with suppress(OSError):
            log.write_text(traceback.format_exc(), encoding="utf-8")
        _fail(
            "Bug",
            f"this is a bug in inheritune: {type(error).__name__}: {str(error)[:200]}.",
            f"Please report it with {log}.",
            1,
            as_json,
        )


def _fail(kind: str, message: str, hint: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"error": kind, "message": message, "hint": hint})
    print(f"error: {message} {hint}".rstrip(), file=sys.stderr)
    raise typer.Exit(code)
