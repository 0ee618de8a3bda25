"""The trackers that rows can be sent to; each is imported when it starts, in its own thread."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import constants

__all__ = ["ADAPTERS", "Row", "Tracked", "Tracker"]

_PROJECT = "inheritune"
# W&B waits when the process ends: for a run that it is opening, and for the uploads of one.
_WANDB_OPENS_S, _WANDB_ENDS_S = 15, 5


@dataclass(frozen=True)
class Row:
    """What is sent of a row of metrics.jsonl.

    Attributes:
        step: Optimizer steps done.
        tokens: Training tokens seen.
        unix_s: When it was measured, in seconds since 1970.
        values: Finite numbers by their names in metrics.jsonl.
    """

    step: int
    tokens: int
    unix_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Tracked:
    """The training that a tracker is told about.

    Attributes:
        name: Shown for it, unless the tracker's own environment variables say otherwise.
        folder: Its directory.
        run_id: What `Tracker.start` gave when this training was started before.
        first_step: Of the rows to come; whatever was sent of it and of later steps is sent again.
    """

    name: str
    folder: Path
    run_id: str | None = None
    first_step: int = 0


class Tracker(Protocol):
    """A place that shows the course of a training. Its methods may block, and raise anything."""

    def start(self, training: Tracked) -> str | None:
        """Open a run, or the one of before.

        Returns:
            What is needed to open it again; None: nothing is.
        """

    def log(self, rows: Sequence[Row]) -> None:
        """Send rows, in the order of their steps; again from the first one, if it raised."""

    def finish(self) -> None:
        """Close the run."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the training."""

    def start(self, training: Tracked) -> None:
        """Open a file that hides the rows of older ones that are written again."""
        from torch.utils.tensorboard import SummaryWriter

        folder = str(training.folder / "tensorboard")
        self._writer: Any = SummaryWriter(folder, purge_step=training.first_step)

    def log(self, rows: Sequence[Row]) -> None:
        """Write rows, and have them on the disk."""
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, row.unix_s)
        self._writer.flush()

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its files lie in ``wandb/`` of the training."""

    def __init__(self) -> None:
        self._new_id = secrets.token_hex(4)  # one for all tries: the first may have opened a run

    def start(self, training: Tracked) -> str:
        """Open the run; rows of steps that it has already are dropped by W&B itself."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Nothing but rows: no output, no code, no machine, no command line.
        nothing_else = {
            "console": "off",
            "disable_git": True,
            "save_code": False,
            "x_disable_machine_info": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
        }
        wandb.setup(wandb.Settings(silent=True))
        mode = os.environ.get("WANDB_MODE") or ("offline" if constants.HF_HUB_OFFLINE else "online")
        # `init` would ask for a key where there is a terminal; here nobody would answer.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("nobody is logged in: wandb login, or WANDB_MODE=offline")
        run_id = training.run_id or self._new_id
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            reinit="create_new",
            mode=mode,
            **_unless_set(
                WANDB_PROJECT=("project", _PROJECT),
                WANDB_NAME=("name", training.name),
                WANDB_DIR=("dir", str(training.folder)),
            ),
            settings=wandb.Settings(
                silent=True,
                init_timeout=_WANDB_OPENS_S,
                finish_timeout=_WANDB_ENDS_S,
                **nothing_else,
            ),
        )
        return run_id

    def log(self, rows: Sequence[Row]) -> None:
        """Hand rows to W&B's own process, which keeps them while the network is down."""
        for row in rows:
            self._run.log(dict(row.values), step=row.step)

    def finish(self) -> None:
        """Close the run; what is not uploaded by then stays in its files, for `wandb sync`."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its local database or wherever its environment variables say."""

    def start(self, training: Tracked) -> str:
        """Open the run, which trackio knows by its name."""
        if constants.HF_HUB_OFFLINE and os.environ.get("TRACKIO_SPACE_ID"):
            raise RuntimeError("TRACKIO_SPACE_ID names a Space, and HF_HUB_OFFLINE is set")
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        # It prints to stdout, which carries data here. Redirecting would take stdout from all.
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "trackio":
                vars(module)["print"] = _say_nothing
        name, sent = training.run_id or training.name, None
        if training.run_id is not None:
            sent = SQLiteStorage.get_max_step_for_run(_PROJECT, name)
        self._sent = -1 if sent is None else sent
        self._run = trackio.init(
            _PROJECT,
            name,
            resume="never" if training.run_id is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def log(self, rows: Sequence[Row]) -> None:
        """Hand rows to trackio's own thread, but those of steps that it has."""
        for row in rows:
            if row.step > self._sent:
                self._run.log(dict(row.values), step=row.step)

    def finish(self) -> None:
        """Close the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, on its server or in its local database."""

    def start(self, training: Tracked) -> str:
        """Open the run; it comes to know how far the rows are that it has."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self._client = MlflowClient()
        found = self._find(training.run_id)
        if found is None:
            found = self._client.create_run(self._experiment(), run_name=training.name)
        else:
            self._client.update_run(training.run_id, status="RUNNING")
        self._tokens_sent = found.data.metrics.get("tokens", -1.0)
        self._run_id = str(found.info.run_id)
        return self._run_id

    def _find(self, run_id: str | None) -> Any:
        """The run, unless it was deleted."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found if found.info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        if chosen := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return chosen
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def log(self, rows: Sequence[Row]) -> None:
        """Send rows in one request, but those that the run has."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(row.unix_s * 1000), row.step)
            for row in rows
            if row.tokens > self._tokens_sent
            for name, value in row.values.items()
        ]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self) -> None:
        """Close the run."""
        self._client.set_terminated(self._run_id, "FINISHED")


ADAPTERS: Mapping[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def _unless_set(**by_variable: tuple[str, str]) -> dict[str, str]:
    """Arguments, but those that an environment variable gives."""
    return dict(given for name, given in by_variable.items() if not os.environ.get(name))


def _say_nothing(*what: object, **how: object) -> None:
    """Stand in for `print`."""
