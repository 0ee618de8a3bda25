"""Ask several models the same tasks under the same settings, each answer kept as it comes."""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import DataError, InherituneError, Interrupted, MachineError, first_line
from inheritune.evaluation.harness import (
    BOOTSTRAPS,
    Description,
    answer,
    as_text,
    describe,
    lm_eval_version,
    load,
    open_model,
)
from inheritune.evaluation.scores import Score, find_score, keep_score, read_result, score_file
from inheritune.system.files import write_bytes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag

__all__ = ["Answers", "Asked", "Failure", "Settings", "ask", "described"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Asked:
    """A model to ask.

    Attributes:
        name: For people.
        path: Its directory.
        digest: Of its config and weights.
    """

    name: str
    path: Path
    digest: str


@dataclass(frozen=True)
class Settings:
    """What is the same for every model.

    Attributes:
        batch_size: Requests in a forward.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        add_bos: ``auto``, ``yes`` or ``no``: whether every text begins with BOS.
        limit: Questions of each task; None: all.
        device: Such as ``cpu`` or ``cuda``.
    """

    batch_size: int = 16
    dtype: str = "fp32"
    add_bos: str = "auto"
    limit: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Failure:
    """A task that a model could not be asked."""

    model: str
    task: str
    message: str


@dataclass(frozen=True)
class Answers:
    """What came of it.

    Attributes:
        scores: Pairs of a model's name and a score, model after model, in the order asked.
        failures: The rest.
    """

    scores: list[tuple[str, Score]]
    failures: list[Failure]


@contextmanager
def described(
    tasks: Sequence[tuple[str, int | None]], folder: Path | None, allow_code: bool, out: Path
) -> Iterator[list[Description]]:
    """Descriptions of tasks, for as long as the block runs; see `harness.describe`.

    Args:
        tasks: Names and shots.
        folder: Of local questions.
        allow_code: Whether tasks may run code of their own.
        out: Directory of scores; descriptions that are only needed meanwhile are made in it.

    Raises:
        MissingExtraError: lm-eval is not installed.
        RecipeError: A task is unknown, or wants to run code and may not.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tasks-", dir=out) as scratch:
        found = [
            description
            for number, (name, shots) in enumerate(tasks)
            for description in describe(
                name, shots, folder, allow_code, _subfolder(Path(scratch), number)
            )
        ]
        yield list({d.task: d for d in found}.values())


def _subfolder(scratch: Path, number: int) -> Path:
    folder = scratch / str(number)
    folder.mkdir()
    return folder


def ask(
    models: Sequence[Asked],
    tasks: Sequence[Description],
    settings: Settings,
    out: Path,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
) -> Answers:
    """Ask every model every task, but for what is in ``out`` already.

    A model is loaded once, and only if it has something to answer. A task that fails is noted, and
    the others are asked.

    Args:
        models: In this order.
        tasks: Of `described`.
        settings: Of all.
        out: Directory of scores; beside each lies lm-eval's own result.
        stop: Asked before each forward; a task that was begun is asked again next time.
        on_progress: Told of requests.

    Raises:
        Interrupted: Asked to stop; every task that was done is kept.
        DataError: A file in ``out`` is broken.
    """
    out.mkdir(parents=True, exist_ok=True)
    scores: list[tuple[str, Score]] = []
    failures: list[Failure] = []
    unreadable: dict[str, str] = {}
    for model in models:
        rows = _Rows(model.name, stop, on_progress)
        questioned = _Questioned(model, settings, out, rows, unreadable)
        for task in tasks:
            try:
                scores.append((model.name, questioned.score(task)))
            except (Interrupted, DataError):
                raise
            except Exception as error:
                said = error.message if isinstance(error, InherituneError) else first_line(error)
                failures.append(Failure(model.name, task.task, said))
                rows.say(f"failed: {said}")
    return Answers(scores, failures)


class _Questioned:
    """One model, loaded when the first task is not answered yet."""

    def __init__(
        self,
        model: Asked,
        settings: Settings,
        out: Path,
        rows: "_Rows",
        unreadable: dict[str, str],
    ) -> None:
        self._model, self._settings, self._out = model, settings, out
        self._rows, self._unreadable = rows, unreadable
        self._lm: Any = None

    def score(self, task: Description) -> Score:
        """Of an earlier time, or asked now and kept."""
        key = _key(self._model, task, self._settings)
        if (known := find_score(self._out, key)) is not None:
            return known
        self._rows.begin(task.task)
        self._rows.check()
        if task.task in self._unreadable:  # for the model before; the Hub is not asked again
            raise MachineError(self._unreadable[task.task])
        try:
            questions = load(task)
        except MachineError as error:
            self._unreadable[task.task] = error.message
            raise
        lm = self._opened()
        began = time.monotonic()
        raw = answer(lm, questions, task, self._settings.limit)
        facts = _facts(lm, self._settings)
        score = read_result(raw, task.task, key, time.monotonic() - began, facts)
        own = score_file(self._out, key).with_suffix(".lm-eval.json")
        write_bytes(own, (as_text(raw) + "\n").encode())
        keep_score(self._out, score, own.name)
        self._rows.say(_told(score))
        return score

    def _opened(self) -> Any:
        wanted = self._settings
        if self._lm is None:
            self._lm = open_model(
                self._model.path,
                wanted.batch_size,
                wanted.dtype,
                wanted.add_bos,
                wanted.device,
                self._rows,
            )
        return self._lm


class _Rows:
    """Counts the rows of all forwards of a task, and stops between two of them."""

    def __init__(self, model: str, stop: StopFlag | None, on_progress: Listener) -> None:
        self._model, self._stop, self._on_progress = model, stop, on_progress
        self._task, self._done = "", 0

    def begin(self, task: str) -> None:
        self._task, self._done = task, 0
        self.say("asked")

    def check(self) -> None:
        if self._stop is not None:
            self._stop.check(f"the tasks before {self._task} are kept, for {self._model}")

    def say(self, message: str) -> None:
        self._on_progress(Progress(f"{self._model}: {self._task}", message=message))

    def __call__(self, rows: int) -> None:
        self.check()
        self._done += rows
        self._on_progress(Progress(f"{self._model}: {self._task}", self._done, 0, "rows"))


def _key(model: Asked, task: Description, settings: Settings) -> dict[str, Any]:
    return {
        "model": model.digest,
        "tokenizer": _tokenizer_digest(model.path),
        "task": task.task,
        "version": task.version,
        "shots": task.shots,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "add_bos": settings.add_bos,
        "data": task.data,
        "bootstraps": BOOTSTRAPS,
        "lm_eval": lm_eval_version(),
    }


def _tokenizer_digest(path: Path) -> str:
    total = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            with (path / name).open("rb") as file:
                total.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def _facts(lm: Any, settings: Settings) -> dict[str, Any]:
    """What the settings came to for this tokenizer and machine."""
    ids = lm.tok_encode("a")
    first = lm.tokenizer.bos_token_id
    return {
        "device": settings.device,
        "begins_with_bos": bool(ids) and first is not None and ids[0] == first,
        "max_length": int(lm.max_length),
    }


def _told(score: Score) -> str:
    shown = [f"{name} {m.value:.4g}" for name, m in score.metrics.items() if m.value is not None]
    return ", ".join(shown[:3]) or "no number"
