"""Define the command generate: models continue the same prompt, shown as they write."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from inheritune import api
from inheritune.cli.completion import models as known_models
from inheritune.cli.console import Debug, Json, print_json, print_piece, reported, say
from inheritune.errors import RecipeError, escape

# A prompt is told from a model by its form: a model is a directory, embedded:NAME or OWNER/NAME.
_MODEL = re.compile(r"embedded:\S+|[\w.-]+/[\w.-]+", re.ASCII)
_MOST_BYTES = 4 * 2**20  # of a prompt from stdin


def generate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL... [PROMPT]",
            autocompletion=known_models,
            help="A run (its reference, target and control), model directories, Hub ids or "
            "embedded:demo; then the prompt. Without one, or with -, it is read from stdin.",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Prompt that looks like a model; all arguments are then models."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's own chat template.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; above 0 samples.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.")] = 128,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Let a run's reference, target and control, or any models, continue a prompt in turn."""
    with reported(as_json, debug):
        names, text = _split(models) if prompt is None else (models, prompt)
        if text is None:
            text = _read_prompt(models[-1])
        settings: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
            "chat": chat,
        }
        if as_json:
            print_json(api.generate(names, text, progress=False, **settings).as_json())
        else:
            write_texts(names, text, **settings)


def write_texts(models: Sequence[str], prompt: str, **settings: Any) -> None:
    """Show the texts of models as they write them; settings are those of `api.generate`."""
    with _shown() as screen:
        generation = api.generate(models, prompt, on_text=screen.show, progress=False, **settings)
    for text in generation.texts:
        if text.end == "positions":
            say(f"{escape(text.model)} ended early: it has no more positions.")


class _Screen:
    """Show the text of each model below its name."""

    def __init__(self) -> None:
        self.model: str | None = None

    def show(self, model: str, text: str) -> None:
        """Show the next piece of a model's text."""
        if model != self.model:
            if self.model is not None:
                print_piece("\n\n")
            say(f"{escape(model)}:")
            self.model = model
        print_piece(text)


@contextmanager
def _shown() -> Iterator[_Screen]:
    """End the last line, however the block ends."""
    screen = _Screen()
    try:
        yield screen
    finally:
        if screen.model is not None:
            print_piece("\n")


def _split(arguments: list[str]) -> tuple[list[str], str | None]:
    """Tell the models from the prompt, None where there is none."""
    *names, last = arguments
    if last == "-":
        return names, None
    return (arguments, None) if not names or _is_model(last) else (names, last)


def _is_model(text: str) -> bool:
    try:
        files = [Path(text) / name for name in ("config.json", "run.json")]
        is_directory = bool(text) and any(file.is_file() for file in files)
    except OSError:  # too long for a path
        return False
    return is_directory or _MODEL.fullmatch(text) is not None


def _read_prompt(last: str) -> str:
    """Read the prompt from stdin; the last line feed is not part of it.

    Args:
        last: The last argument, which may have been meant as the prompt.
    """
    is_open = sys.stdin is not None and not sys.stdin.isatty()
    content = sys.stdin.buffer.read(_MOST_BYTES + 1) if is_open else b""
    if not content:
        taken = "" if last == "-" else f", and {escape(last)!r} is taken for a model"
        raise RecipeError(
            f"there is no prompt: stdin is {'empty' if is_open else 'a terminal'}{taken}.",
            "Write the prompt after the models, give it by --prompt, or pipe it in: "
            "echo PROMPT | inheritune generate MODEL -",
        )
    if len(content) > _MOST_BYTES:
        raise RecipeError("the prompt on stdin is larger than 4 MiB.", "Shorten it.")
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise RecipeError(
            f"the prompt on stdin holds the byte {byte:#x}.", "Write it in UTF-8."
        ) from error
