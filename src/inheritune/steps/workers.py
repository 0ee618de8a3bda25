"""What every process but the first does: its part of what the first one posts."""

from pathlib import Path

from inheritune.data.tokens import open_tokens
from inheritune.steps.job import Job
from inheritune.steps.training import train_share
from inheritune.steps.training_spec import TrainingSpec
from inheritune.steps.validation import val_loss_share

__all__ = ["serve"]


def serve(job: Job) -> int:
    """Take part in trainings and measurements until the run ends.

    Args:
        job: As process 0 has it. Tokens and start directories are read where that one has them:
            several machines need directories that they share.

    Returns:
        The exit code of the run.
    """
    for task in job.processes.tasks(job.stop):
        if task["do"] == "end":
            return int(task["code"])
        tokens = open_tokens(Path(task["tokens"]))  # whatever there was to prepare is prepared
        if task["do"] == "train":
            folder = job.run.root / task["folder"]
            train_share(job, TrainingSpec(**task["arm"]), folder, tokens, task["inputs"])
        else:
            val_loss_share(job, Path(task["directory"]), tokens, task["task"])
    return 0
