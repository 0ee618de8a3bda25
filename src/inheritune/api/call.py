"""Turn arguments that all functions of the API take into paths and listeners; handle Ctrl-C."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from inheritune.errors import Interrupted, RecipeError
from inheritune.system.progress import Listener, Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.data.tokens import TokenDirectory
    from inheritune.model_files.directory import ModelDirectory
    from inheritune.recipe.data import Data
    from inheritune.recipe.load import RecipeFile
    from inheritune.recipe.schema import Recipe

PathLike: TypeAlias = str | os.PathLike[str]
Text: TypeAlias = PathLike | Mapping[str, Any]
StoredModel: TypeAlias = "PathLike | ModelDirectory"
Model: TypeAlias = "StoredModel | PreTrainedModel"
Tokens: TypeAlias = "PathLike | TokenDirectory"
AnyRecipe: TypeAlias = "PathLike | Recipe | RecipeFile"
ProgressOption: TypeAlias = bool | Listener
READING_KEYS = (
    *("text_column", "messages", "format", "separator", "config", "split", "revision"),
    *("special_tokens_in_text", "max_bad_rows"),
)
"""Keys of a recipe's `data` section that say how a text is read."""


@contextmanager
def call(progress: ProgressOption) -> Iterator[Listener]:
    """Yield the listener of a call, and turn Ctrl-C into our own error."""
    try:
        with ExitStack() as stack:
            yield _listener(progress, stack)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped by SIGINT; what was complete is kept.", "Run the same command to continue."
        ) from None


def _listener(progress: ProgressOption, stack: ExitStack) -> Listener:
    if callable(progress):
        return progress
    if not progress or os.environ.get("RANK", "0") != "0":  # torchrun's other processes
        return silent
    bars: list[Listener] = []

    def draw(event: Progress) -> None:
        if not bars:  # nothing is imported or drawn for a call that reports nothing
            from inheritune.system.progress_bar import progress_bar

            bars.append(stack.enter_context(progress_bar()))
        bars[0](event)

    return draw


def path_of(value: "PathLike | ModelDirectory | TokenDirectory") -> Path:
    """Return the path of a directory that is given by its path or opened."""
    path = getattr(value, "path", value)
    if isinstance(path, str | os.PathLike):
        return Path(path)
    raise TypeError(f"expected a path, got {type(value).__name__}")


def optional_path(value: "PathLike | TokenDirectory | None") -> Path | None:
    """Return the path, or None where none is given."""
    return None if value is None else path_of(value)


def paths_of(values: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return the paths of one file or several."""
    return [path_of(v) for v in ([values] if isinstance(values, str | os.PathLike) else values)]


def texts_of(values: str | Sequence[str]) -> list[str]:
    """Return a list of one text or several."""
    return [values] if isinstance(values, str) else list(values)


def optional_text(text: "Text | Sequence[PathLike] | None") -> "Data | None":
    """Return a text as `text_data` does, or None where none is given."""
    return None if text is None else text_data(text)


def text_data(text: "Text | Sequence[PathLike]") -> "Data":
    """Return a text, given by its source or with keys of a recipe's `data` section, as such."""
    fields = dict(text) if isinstance(text, Mapping) else {"source": text}
    if "source" not in fields:
        raise RecipeError("a text is given without its source.", 'Name it: {"source": PATH, ...}.')
    if others := fields.keys() - {"source", *READING_KEYS}:
        raise RecipeError(
            f"data.{min(others)} does not say how a text is read.",
            f"Leave it out; these do: {', '.join(READING_KEYS)}.",
        )
    section = data_section(fields)
    if any("weight" in getattr(part, "model_fields_set", ()) for part in section.source):
        raise RecipeError(
            "weight does not say how a text is read: all of it is, one source after the other.",
            "Leave it out; only a recipe mixes its sources by weight.",
        )
    return section


def data_section(fields: Mapping[str, Any]) -> "Data":
    """Check the keys of a recipe's `data` section; paths may be of any kind."""
    from pydantic import ValidationError

    from inheritune.recipe.data import Data
    from inheritune.recipe.messages import explain
    from inheritune.recipe.yaml_tree import Tree

    values, source = dict(fields), fields.get("source")
    if isinstance(source, os.PathLike):
        values["source"] = os.fspath(source)
    elif "source" in fields and not isinstance(source, str):
        parts: Any = source  # anything else than a sequence is a TypeError
        values["source"] = [os.fspath(p) if isinstance(p, os.PathLike) else p for p in parts]
    try:
        return Data.model_validate(values)
    except ValidationError as error:
        raise explain(error, Tree("data", values)) from None


def refuse_below(least: int, **values: int | None) -> None:
    """Refuse numbers that are too small, by the names of their parameters."""
    for name, value in values.items():
        if value is not None and value < least:
            raise RecipeError(f"{name} is {value}.", f"Choose at least {least}.")


def tokenizer_directory(model: StoredModel) -> Path:
    """Return the directory of a model's tokenizer; a local one may hold nothing else."""
    from inheritune.model_files.directory import ModelDirectory, open_model

    if isinstance(model, ModelDirectory) or path_of(model).is_dir():
        return path_of(model)
    return open_model(os.fspath(model), whole=False).path
