"""Serve process 0: do this process's share of every training and measurement that it posts."""

from contextlib import ExitStack, suppress
from pathlib import Path

from inheritune.data.tokens import open_tokens
from inheritune.errors import DivergedError
from inheritune.steps.job import Job
from inheritune.steps.training import compiler_files, train_share
from inheritune.steps.training_task import TrainingTask
from inheritune.steps.validation import val_loss_share


def serve(job: Job) -> int:
    """Take part in trainings and measurements until the run ends.

    Args:
        job: As in process 0. Tokens and models are read from the paths that process 0 names, so
            several machines need a shared file system.

    Returns:
        The exit code of the run.
    """
    with ExitStack() as stack:
        for message in job.processes.tasks(job.stop):
            if message["do"] == "end":
                return int(message["code"])
            stack.enter_context(compiler_files(job.run.root))  # of the first message; now it exists
            # Whatever process 0 names is complete: it prepares tokens and starts before it posts.
            if message["do"] == "train":
                # It diverges in all processes at once; process 0 says what comes of it.
                with suppress(DivergedError):
                    train_share(TrainingTask.from_message(job, message))
            else:
                tokens = open_tokens(Path(message["tokens"]))
                val_loss_share(job, Path(message["directory"]), tokens, message["task"])
    return 0
