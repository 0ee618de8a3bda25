"""Build the commands that messages tell the user to give next."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from inheritune.system.processes import MEETING_FILE

DEFAULT_RUNS = Path("runs")


def command(*words: object, runs: Path = DEFAULT_RUNS, **options: object) -> str:
    """Write a command line of `inheritune` that a shell reads as it is meant.

    Args:
        words: The command and its arguments; None is left out.
        runs: Parent directory of runs; left out where it is the default.
        options: Values by option, ``seq_len`` for ``--seq-len``. None and False are left out, True
            stands for an option without a value, and a list repeats its option.
    """
    texts = ["inheritune", *(str(word) for word in words if word is not None)]
    if runs != DEFAULT_RUNS:
        options["runs"] = runs
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            texts.append(option)
        elif value is not None and value is not False:
            for item in value if isinstance(value, list | tuple) else [value]:
                texts += [option, f"{item:g}" if isinstance(item, float) else str(item)]
    return shlex.join(texts)


def same_command(without: Sequence[str] = ()) -> str:
    """The command line of this process, as it would be given again; empty under torchrun.

    Args:
        without: Options, each with a value, that are left out.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and started_processes() is None:
        return ""
    words, texts = iter(sys.argv[1:]), ["inheritune"]
    for word in words:
        option, equals, _ = word.partition("=")
        if option not in without:
            texts.append(word)
        elif not equals:
            next(words, None)
    if started_processes() is not None:  # a worker's own arguments do not say so
        texts += ["--processes", str(started_processes())]
    return shlex.join(texts)


def started_processes() -> int | None:
    """N of the `--processes N` that started this worker; None in any other process."""
    return int(os.environ["WORLD_SIZE"]) if MEETING_FILE in os.environ else None


def with_sets(given: Sequence[str], more: Sequence[str]) -> list[str]:
    """Add overrides, KEY=VALUE, to those that were given, in place of any of the same key."""
    keys = {text.partition("=")[0] for text in more}
    return [*(text for text in given if text.partition("=")[0] not in keys), *more]
