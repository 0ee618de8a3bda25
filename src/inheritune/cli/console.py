"""What people and programs see: messages on stderr, data on stdout, errors with their exit code."""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from inheritune.cli.launch import is_first_process
from inheritune.errors import DivergedError, InherituneError, Interrupted, escape
from inheritune.system.progress import silent

__all__ = [
    "DEFAULT_RUNS",
    "AllowChange",
    "Debug",
    "From",
    "Json",
    "NumberOfProcesses",
    "Runs",
    "Scale",
    "Sets",
    "UsageAsJson",
    "print_json",
    "print_text",
    "progress",
    "reported",
    "say",
]

Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; may be repeated."),
]
NumberOfProcesses = Annotated[
    int, typer.Option("--processes", min=1, help="On this machine, such as one for each GPU.")
]
Scale = Annotated[
    float | None,
    typer.Option(
        metavar="FACTOR",
        help="Try the recipe small, such as 1e-6: tokens times this, widths, sequences and batches "
        "times its fourth root, all rounds and variants at their depths, on Python's standard "
        "library. No result of the method.",
    ),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="Go on although this key has changed; recorded."),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="CHECKPOINT",
        help="Go on from this step directory of the unfinished training, not from the newest. "
        "Later ones are set aside, and deleted once a newer one is saved; metrics are cut back. "
        "Stopped again, leave --from out.",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept, each under its name.")]

DEFAULT_RUNS = Path("runs")

# Of the library beneath typer, which typer may bring along under a name of its own.
_UsageError: Any = typer.BadParameter.__base__


def say(text: str) -> None:
    """Tell people something."""
    print(text, file=sys.stderr)


def print_json(value: object) -> None:
    """Tell programs something."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_text(text: str) -> None:
    """Give a text to whoever reads stdout, as it is."""
    print(text, end="" if text.endswith("\n") else "\n")


class UsageAsJson(TyperGroup):
    """The commands; with ``--json`` on the line, a wrong line is told to programs as well."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line, and end the process with its exit code."""
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
            said = " ".join(error.format_message().split())
            print_json({"error": "UsageError", "message": said, "hint": f"See {where} --help."})
            print(f"error: {said} See {where} --help.", file=sys.stderr)
            code = error.exit_code
        if as_json:
            sys.exit(code if isinstance(code, int) else 0)
        return code


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """A listener for what steps report of their progress."""
    from inheritune.cli.terminal import listening

    if not is_first_process():
        yield silent
        return
    with listening(Console(stderr=True)) as on_progress:
        yield on_progress


@contextmanager
def reported(as_json: bool, debug: bool) -> Iterator[None]:
    """End with one message and the right exit code, whatever happens inside.

    Args:
        as_json: Whether errors are printed on stdout as well, for programs.
        debug: Whether tracebacks are shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            yield
    except typer.Exit:
        raise
    except InherituneError as error:
        if debug:
            traceback.print_exc()
        told = isinstance(error, DivergedError | Interrupted) or hasattr(error, "__notes__")
        if told and not is_first_process():  # the first process says it
            _end(error.exit_code)
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
            f"this is a bug in inheritune: {type(error).__name__}: {escape(error, 200)}.",
            f"Please report it with {log}.",
            1,
            as_json,
        )


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):
        say(f"warning: {message}")


def _fail(kind: str, message: str, hint: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": kind, "message": message, "hint": hint})
    print(f"error: {message} {hint}".rstrip(), file=sys.stderr)
    _end(code)


def _end(code: int) -> NoReturn:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # The threads of a group that lost a process abort the interpreter when it ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code) from None
