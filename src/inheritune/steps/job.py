"""The context that all steps of a run share."""

from dataclasses import dataclass
from pathlib import Path

from inheritune.recipe.schema import Recipe
from inheritune.run_directory import Run
from inheritune.system.processes import ALONE, Processes
from inheritune.system.progress import Listener
from inheritune.system.signals import StopFlag


@dataclass(frozen=True)
class Job:
    """The context that all steps of a run share.

    Attributes:
        recipe: Everything that the user decided.
        run: The run's directory.
        stop: Checked between pieces of work.
        on_progress: Called with every event.
        processes: The process group. Ranks above 0 run `workers.serve`.
        allowed: Input keys that may differ from those that results and checkpoints were made with.
        checkpoint: Checkpoint from which the next training continues, see `checkpoint_for`; None:
            its newest complete one.
    """

    recipe: Recipe
    run: Run
    stop: StopFlag
    on_progress: Listener
    processes: Processes = ALONE
    allowed: frozenset[str] = frozenset()
    checkpoint: Path | None = None
