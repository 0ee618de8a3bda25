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
    """The context that all steps of a run share."""

    recipe: Recipe  # everything that the user decided
    run: Run
    stop: StopFlag  # checked between pieces of work
    on_progress: Listener  # called with every event
    processes: Processes = ALONE  # the process group. Ranks above 0 run `workers.serve`.
    # Input keys that may differ from those that results and checkpoints were made with
    allowed: frozenset[str] = frozenset()
    # Checkpoint from which the next training continues, see `checkpoint_for`; None: its newest
    # complete one
    checkpoint: Path | None = None
