"""What every step is given, and how it leaves a result that is not made twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.durable import read_json_file, write_json
from inheritune.errors import RecipeError
from inheritune.inputs import first_difference
from inheritune.progress import Listener
from inheritune.recipe import Recipe
from inheritune.run import Run
from inheritune.signals import StopFlag

__all__ = ["Job", "finish", "finished"]


@dataclass(frozen=True)
class Job:
    """What every step is given.

    Attributes:
        recipe: What to do.
        run: Where it is written.
        stop: Asked between pieces of work.
        on_progress: Told what goes on.
    """

    recipe: Recipe
    run: Run
    stop: StopFlag
    on_progress: Listener


def finished(path: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result a step left, if it did.

    Args:
        path: The file a step ends with.
        inputs: What the step would be done with now.

    Raises:
        RecipeError: The result was made from other inputs; it is never overwritten.
    """
    if not path.exists():
        return None
    stored = read_json_file(path)
    difference = first_difference(stored["inputs"], inputs)
    if difference is not None:
        key, before, now = difference
        raise RecipeError(
            f"{path} was made with {key} = {before!r}; now it is {now!r}.",
            "Put it back, or give the run another name: --set name=...",
        )
    result: dict[str, Any] = stored["result"]
    return result


def finish(path: Path, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write the file a step ends with: its result, and what it was made from."""
    write_json(path, {"inputs": dict(inputs), "result": dict(result)})
