"""The trackers that a recipe names, for one training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.steps.job import Job
from inheritune.system.progress import Progress

if TYPE_CHECKING:
    from inheritune.training.trackers import Trackers

__all__ = ["open_trackers"]


def open_trackers(job: Job, task: str, folder: Path) -> "Trackers":
    """What a training's rows are sent to; in every process but the first, nothing.

    Args:
        job: Its recipe names the trackers; its listener is told what goes wrong with them.
        task: The training's name, shown with the recipe's.
        folder: The training's own directory.
    """
    from inheritune.training.tracker_adapters import ADAPTERS
    from inheritune.training.trackers import Trackers

    def say(trouble: str) -> None:
        job.on_progress(Progress(task, message=trouble))

    names: Sequence[str] = [] if job.processes.rank else job.recipe.report.trackers
    makers = {name: ADAPTERS[name] for name in names}
    return Trackers(makers, f"{job.recipe.name}: {task}", folder, say)
