"""What every step is given, and how it leaves a result that is not made twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.recipe.schema import Recipe
from inheritune.run_directory import Run
from inheritune.system.files import write_json
from inheritune.system.inputs import refuse_differences
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener, Progress
from inheritune.system.signals import StopFlag
from inheritune.system.strict_json import read_json

__all__ = ["Job", "finish", "finished"]


@dataclass(frozen=True)
class Job:
    """What every step is given.

    Attributes:
        recipe: What to do.
        run: Where it is written.
        stop: Asked between pieces of work.
        on_progress: Told what goes on.
        processes: That share the trainings; the others run `workers.serve`.
        allowed: Keys that may differ from what results and checkpoints were made with.
        checkpoint: The one that the next training goes on from, see `steps.chosen`; None: the
            newest that is whole.
    """

    recipe: Recipe
    run: Run
    stop: StopFlag
    on_progress: Listener
    processes: Processes = ALONE
    allowed: frozenset[str] = frozenset()
    checkpoint: Path | None = None


def finished(job: Job, path: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result a step left, if it did.

    Args:
        job: Its allowed changes are let pass, and said.
        path: The file a step ends with.
        inputs: What the step would be done with now.

    Raises:
        RecipeError: The result was made from other inputs; it is never overwritten.
    """
    if not path.exists():
        return None
    stored = read_json(path)
    for key, before, now in refuse_differences(path, stored["inputs"], inputs, job.allowed):
        said = f"allowed: it was made with {key} = {before!r}, now it is {now!r}"
        job.on_progress(Progress(path.parent.name, message=said))
    result: dict[str, Any] = stored["result"]
    return result


def finish(path: Path, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write the file a step ends with: its result, and what it was made from."""
    write_json(path, {"inputs": dict(inputs), "result": dict(result)})
