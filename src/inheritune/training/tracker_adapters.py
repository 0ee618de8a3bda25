"""Send rows to TensorBoard, Weights & Biases, trackio or MLflow.

`accelerate.tracking` wraps the same libraries, but its trackers write to a logger that raises
without accelerate's `PartialState`; that state, in a worker, rewrites RANK, LOCAL_RANK and
MASTER_PORT and may set torch's number of threads: a training would not be the same with and without
trackers. It would save the short `log` and `finish`; opening a run, and leaving out what nobody
asked to send (user, command, git commit), would stay here. So each library is called directly, in
the tracker's own thread, where it is imported.
"""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import constants

_PROJECT = "inheritune"
# W&B makes the process wait for the opening of a run, and at its end for uploads.
_WANDB_OPENS_S, _WANDB_ENDS_S = 15, 5


@dataclass(frozen=True)
class Row:
    """The part of a row of metrics.jsonl that is sent."""

    step: int
    tokens: int
    unix_s: float  # time of the measurement, seconds since 1970
    values: Mapping[str, float]  # finite numbers by their names in metrics.jsonl


@dataclass(frozen=True)
class TrackedTraining:
    """The training whose rows are sent."""

    name: str  # shown by the tracker, unless its own environment variables say otherwise
    folder: Path
    run_id: str | None = None  # result of `Tracker.start` when this training was started before
    first_step: int = 0  # it and later ones may have been sent before


class Tracker(Protocol):
    """A place that shows the course of a training. Its methods may block, and raise anything."""

    def start(self, training: TrackedTraining) -> str | None:
        """Open a run, or the earlier one; return what reopens it, None where nothing is needed."""

    def log(self, rows: Sequence[Row]) -> None:
        """Send rows, in the order of their steps; the same ones again after an exception."""

    def finish(self) -> None:
        """Close the run."""


class _TensorBoard:
    """Event files in ``tensorboard/`` of the training."""

    def start(self, training: TrackedTraining) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(training.folder / "tensorboard")
        # Older rows of the steps that are written again are hidden.
        self._writer: Any = SummaryWriter(folder, purge_step=training.first_step)

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, row.unix_s)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases; its files lie in ``wandb/`` of the training."""

    def __init__(self) -> None:
        self._new_id = secrets.token_hex(4)  # one for all tries: the first may have opened a run

    def start(self, training: TrackedTraining) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Rows only: no output, no code, no machine, no command line.
        private = {
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
        # `init` would ask for a key where there is a terminal; nobody would answer.
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
                silent=True, init_timeout=_WANDB_OPENS_S, finish_timeout=_WANDB_ENDS_S, **private
            ),
        )
        return run_id

    def log(self, rows: Sequence[Row]) -> None:
        # To W&B's own process, which keeps them while the network is down, and drops steps it has.
        for row in rows:
            self._run.log(dict(row.values), step=row.step)

    def finish(self) -> None:
        self._run.finish()  # what is not uploaded by then stays in its files, for `wandb sync`


class _Trackio:
    """A run of trackio, in its local database or wherever its environment variables say."""

    def start(self, training: TrackedTraining) -> str:
        if constants.HF_HUB_OFFLINE and os.environ.get("TRACKIO_SPACE_ID"):
            raise RuntimeError("TRACKIO_SPACE_ID names a Space, and HF_HUB_OFFLINE is set")
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        # Its modules print to stdout, which carries data here, and have no switch for it.
        # Redirecting stdout would take it from the whole process.
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "trackio":
                vars(module)["print"] = _print_nothing
        name, last_step = training.run_id or training.name, None  # trackio's id is the name
        if training.run_id is not None:
            last_step = SQLiteStorage.get_max_step_for_run(_PROJECT, name)
        self._last_step = -1 if last_step is None else last_step
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
        for row in rows:
            if row.step > self._last_step:  # trackio has the others
                self._run.log(dict(row.values), step=row.step)

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, on its server or in its local database."""

    def start(self, training: TrackedTraining) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = MlflowClient()
        run = self._earlier_run(training.run_id)
        if run is None:
            run = self._client.create_run(self._experiment_id(), run_name=training.name)
        else:
            self._client.update_run(training.run_id, status="RUNNING")
        self._last_tokens = run.data.metrics.get("tokens", -1.0)
        self._run_id = str(run.info.run_id)
        return self._run_id

    def _earlier_run(self, run_id: str | None) -> Any:
        """Return the run, unless it was deleted."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self) -> str:
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(row.unix_s * 1000), row.step)
            for row in rows
            if row.tokens > self._last_tokens  # the run has the others
            for name, value in row.values.items()
        ]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self) -> None:
        self._client.set_terminated(self._run_id, "FINISHED")


ADAPTERS: Mapping[str, Callable[[], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "trackio": _Trackio,
    "mlflow": _MLflow,
}


def _unless_set(**by_variable: tuple[str, str]) -> dict[str, str]:
    """Leave out the arguments that an environment variable gives."""
    return dict(pair for name, pair in by_variable.items() if not os.environ.get(name))


def _print_nothing(*args: object, **kwargs: object) -> None:
    """Stand in for `print`."""
