"""Print messages to stderr and data to stdout, and end with an error's exit code."""

import codecs
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from inheritune import api
from inheritune.cli.completion import keys, train_keys
from inheritune.cli.launch import is_first_process
from inheritune.cli.next_step import DEFAULT_RUNS as DEFAULT_RUNS
from inheritune.cli.next_step import same_command
from inheritune.errors import (
    DivergedError,
    InherituneError,
    Interrupted,
    MachineError,
    RecipeError,
    escape,
    reason_of,
    visible,
)
from inheritune.system.files import write_bytes
from inheritune.system.secrets import mask

if TYPE_CHECKING:
    from inheritune.recipe.load import RecipeFile


# Headings of option groups in --help.
recipe_option = partial(typer.Option, rich_help_panel="Recipe")
process_option = partial(typer.Option, rich_help_panel="Processes and resuming")
output_option = partial(typer.Option, rich_help_panel="Output")

Json = Annotated[
    bool, output_option("--json", help="Print one JSON value to stdout, errors included.")
]
Debug = Annotated[bool, output_option("--debug", help="Show the traceback of an error.")]
Sets = Annotated[
    list[str] | None,
    recipe_option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=keys,
        help="Override a recipe key, such as train.learning_rate=1e-4; repeatable.",
    ),
]
window_option = partial(
    typer.Option,
    min=2,
    help="Tokens of each window; default: 256, or as many as the reference has positions.",
)
TextKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.KEY=VALUE",
        help="How --text is read, as in a recipe, such as data.text_column=story; repeatable.",
    ),
]
NumberOfProcesses = Annotated[
    int,
    process_option(
        "--processes", min=1, help="Number of processes on this machine, such as one per GPU."
    ),
]
Scale = Annotated[
    float | None,
    recipe_option(
        metavar="FACTOR",
        help="Try the recipe at a small scale, such as 1e-6: multiply tokens by the factor, and "
        "widths, sequence length and batch by its fourth root. Keeps all rounds, variants and "
        "numbers of layers, and uses Python's standard library as text. This shows that the recipe "
        "runs; it is not a result of the method.",
    ),
]
AllowChange = Annotated[
    list[str] | None,
    process_option(
        metavar="KEY",
        autocompletion=train_keys,
        help="Resume although this recipe key has changed, and record the change; repeatable.",
    ),
]
From = Annotated[
    Path | None,
    process_option(
        "--from",
        metavar="CHECKPOINT",
        help="Resume the unfinished training from this step directory instead of the newest "
        "checkpoint. Later checkpoints are set aside, and deleted once a newer one is saved; "
        "metrics after that step are removed. Omit --from when you resume again.",
    ),
]
Runs = Annotated[
    Path,
    recipe_option(
        "--runs",
        metavar="DIR",
        help="Parent directory of runs; each run has a directory of its name.",
    ),
]

# How our own characters are spelt where an encoding lacks them; a power begins with ``^``.
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_SIGNS = {"±": "+-", "×": "x", "…": "...", "–": "-", "—": "-", "−": "-", "→": "->", "←": "<-"}
_SIGNS |= {"≤": "<=", "≥": ">=", "≈": "~", "·": "*", "‖": "||"}
_SPELLINGS = dict(zip(_RAISED, "0123456789-", strict=True)) | _SIGNS

# The class of click, of which typer may bring along a copy under another module name.
_UsageError: Any = typer.BadParameter.__base__


def say(text: str) -> None:
    """Print a message for people."""
    print(visible(text), file=sys.stderr)


def replace_unknown_characters() -> None:
    """Have stdout spell what its encoding lacks, as no error may end a finished command.

    Python's stderr escapes such characters by itself.
    """
    codecs.register_error("inheritune", _spelt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="inheritune")


def _spelt(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # of a stream that is written to
    text, start, end = error.object, error.start, error.end
    spelt = "".join(_SPELLINGS.get(char, "?") for char in text[start:end])
    is_power = text[start] in _RAISED and text[start - 1 : start] not in {"", *_RAISED}
    return ("^" if is_power else "") + spelt, end


def print_json(value: object) -> None:
    """Print a value for programs; escaped where stdout has not every character."""
    is_unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=not is_unicode)
    # JSON escapes only the first range of control characters by itself.
    print("".join(c if visible(c) == c else f"\\u{ord(c):04x}" for c in text))


def print_text(text: str) -> None:
    """Print a text to stdout, control characters escaped."""
    text = visible(text)
    print(text, end="" if text.endswith("\n") else "\n")


def print_piece(text: str) -> None:
    """Print a part of a line to stdout at once, control characters escaped."""
    print(visible(text), end="", flush=True)


class UsageAsJson(TyperGroup):
    """The group of commands; reports usage errors as JSON if ``--json`` is given."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and end the process with its exit code."""
        given = sys.argv[1:] if args is None else args
        as_json = standalone_mode and "--json" in given
        try:
            code = super().main(
                args, prog_name, complete_var, standalone_mode and not as_json, **extra
            )
        except _UsageError as error:
            if not as_json:
                raise
            where = error.ctx.command_path if error.ctx else "inheritune"
            message = " ".join(error.format_message().split())
            print_json({"error": "UsageError", "message": message, "hint": f"See {where} --help."})
            say(f"error: {message} See {where} --help.")
            code = error.exit_code
        if as_json:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def text_with(text: Any, sets: Sequence[str] | None) -> Any:
    """Return what the API is given for ``--text``, with the keys that say how to read it."""
    if not sets:
        return text
    from inheritune.recipe.load import read_sets

    sections = read_sets(sets).value
    keys = sections.get("data")
    if not text or sections.keys() != {"data"} or not isinstance(keys, dict) or "source" in keys:
        raise RecipeError(
            f"--set {escape(sets[0])}: here it says how --text is read.",
            "Give --text and keys of data, such as --set data.text_column=story.",
        )
    return {"source": text} | keys


def load_recipe(
    subject: str | Path, sets: Sequence[str] | None, scale: float | None = None
) -> "RecipeFile":
    """Read a recipe, a file or a preset, and say so if it was scaled down."""
    from inheritune.recipe.sections import recipe_path

    path = recipe_path(str(subject)) or Path(subject)
    recipe = api.load_recipe(path, sets=sets or (), scale=scale)
    if recipe.scaled:
        say(recipe.scaled)
    return recipe


@contextmanager
def reported(as_json: bool, debug: bool) -> Iterator[None]:
    """Turn any exception inside the block into one message and its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            yield
    except typer.Exit:
        raise
    except InherituneError as error:
        if debug:
            traceback.print_exc()
        # These reach every process of a group; the first process reports them.
        is_shared = isinstance(error, DivergedError | Interrupted) or hasattr(error, "__notes__")
        if is_shared and not is_first_process():
            _end(error.exit_code)
        _fail(type(error).__name__, error.message, _hint(error), error.exit_code, as_json)
    except BrokenPipeError:
        raise  # the reader of stdout has gone; typer ends quietly
    except OSError as error:
        if debug:
            traceback.print_exc()
        reason = reason_of(error)
        hint = "Free some space or correct the path, then run the same command to continue."
        _fail("MachineError", f"{error.filename or 'the system'}: {reason}.", hint, 4, as_json)
    except Exception as error:
        if debug:
            raise
        log = Path("inheritune-error.log")
        with suppress(MachineError):
            write_bytes(log, mask(traceback.format_exc()).encode())
        _fail(
            "Bug",
            f"this is a bug in inheritune: {type(error).__name__}: {escape(error, 200)}.",
            f"Please report it with {log}.",
            1,
            as_json,
        )


def _hint(error: InherituneError) -> str:
    if not isinstance(error, Interrupted):
        return error.hint
    # What --from began is now the newest: naming it again would repeat it.
    again = same_command(["--from"] if "--from" in error.hint else [])
    return f"{error.hint.removesuffix('.')}: {again}" if again else error.hint


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):
        say(f"warning: {message}")


def _fail(kind: str, message: str, hint: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": kind, "message": message, "hint": hint})
    say(f"error: {message} {hint}".rstrip())
    _end(code)


def _end(code: int) -> NoReturn:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # After another process of the group has died, its threads abort the interpreter at exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code) from None
