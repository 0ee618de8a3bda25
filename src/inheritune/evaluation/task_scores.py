"""Ask several models the same tasks under the same settings; keep each score as it comes."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from inheritune.errors import DataError, InherituneError, Interrupted, MachineError, first_line
from inheritune.evaluation.harness import (
    BOOTSTRAPS,
    lm_eval_version,
    load_lm,
    load_questions,
    result_text,
    run_task,
)
from inheritune.evaluation.quiet import quiet
from inheritune.evaluation.scores import Score, find_score, keep_score, read_result, score_file
from inheritune.evaluation.task_descriptions import TaskDescription
from inheritune.model_files.directory import ModelDirectory
from inheritune.surgery.class_check.tokenizer_ids import LOADERS
from inheritune.system.files import make_directory, sha256, write_bytes
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.tokenization import Tokenization, compare_here

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings that are the same for every model; see `inheritune.api.evaluate`."""

    batch_size: int = 16
    dtype: str = "fp32"
    add_bos: str = "auto"
    limit: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class TaskFailure:
    """A task that could not be asked of a model."""

    model: str  # name of the model
    task: str
    message: str  # the reason


@dataclass(frozen=True)
class TaskScores:
    """The result of `score_tasks`."""

    scores: list[tuple[str, Score]]  # with the model's name; model after model, in order of tasks
    failures: list[TaskFailure]


def score_tasks(
    models: Mapping[str, ModelDirectory],
    tasks: Sequence[TaskDescription],
    settings: EvaluationSettings,
    out: Path,
    stop: StopFlag,
    on_progress: Listener = silent,
) -> TaskScores:
    """Ask every model every task whose score is not in ``out`` yet.

    A model is loaded once, and only if a task is left to ask. A task that fails is noted, and the
    others are asked.

    Args:
        models: Models by name, in the order in which they are asked.
        tasks: The tasks that `task_descriptions` yields.
        out: Directory of scores; lm-eval's own result is written beside each.
        stop: Checked before each forward; an interrupted task is asked again next time.

    Raises:
        Interrupted: ``stop`` was set; every score that was complete is kept.
        DataError: A file in ``out`` is broken.
    """
    make_directory(out)
    scores: list[tuple[str, Score]] = []
    failures: list[TaskFailure] = []
    unreadable: dict[str, str] = {}
    for name, model in models.items():
        counter = _ForwardCounter(name, stop, on_progress)
        scorer = _Scorer(model, settings, out, counter, unreadable)
        for task in tasks:
            try:
                scores.append((name, scorer.score(task)))
            except (Interrupted, DataError):
                raise
            except Exception as error:
                reason = error.message if isinstance(error, InherituneError) else first_line(error)
                failures.append(TaskFailure(name, task.task, reason))
                counter.report(f"failed: {reason}")
    return TaskScores(scores, failures)


class _Scorer:
    """Scores one model, and loads it when the first task without a score comes up."""

    def __init__(
        self,
        model: ModelDirectory,
        settings: EvaluationSettings,
        out: Path,
        counter: "_ForwardCounter",
        unreadable: dict[str, str],
    ) -> None:
        self._model, self._settings, self._out = model, settings, out
        self._counter, self._unreadable = counter, unreadable
        self._lm: Any = None

    @cached_property
    def _tokenization(self) -> Tokenization | None:
        with quiet():
            return compare_here(self._model.path)

    @property
    def _add_bos(self) -> bool | None:
        """Whether texts begin with BOS: as asked for, or as in training; None: by itself."""
        if self._settings.add_bos != "auto":
            return self._settings.add_bos == "yes"
        return None if self._tokenization is None else self._tokenization.add_bos

    @property
    def _loader(self) -> str:
        return LOADERS[0] if self._tokenization is None else self._tokenization.loader

    def _key(self, task: TaskDescription) -> dict[str, Any]:
        """Collect everything that the numbers depend on."""
        key = _key(self._model, task, self._settings)
        # Left out where transformers does as it is done in training: such scores are kept.
        if self._loader != LOADERS[0]:
            key["loader"] = self._loader
        if self._settings.add_bos == "auto" and self._add_bos is not None:
            key["begins_with_bos"] = self._add_bos
        return key

    def score(self, task: TaskDescription) -> Score:
        """Take the score from an earlier time, or ask the task now and keep its score."""
        key = self._key(task)
        if (score := find_score(self._out, key)) is not None:
            return score
        self._counter.begin(task.task)
        self._counter.check()
        if task.task in self._unreadable:  # for an earlier model; the Hub is not asked again
            raise MachineError(self._unreadable[task.task])
        try:
            questions = load_questions(task)
        except MachineError as error:
            self._unreadable[task.task] = error.message
            raise
        if self._lm is None:
            self._lm = load_lm(
                self._model.path,
                self._settings.batch_size,
                self._settings.dtype,
                self._loader,
                self._add_bos,
                self._settings.device,
                self._counter,
            )
            for difference in self._tokenization.differences if self._tokenization else ():
                self._counter.report(difference)
        began = time.monotonic()
        result = run_task(self._lm, questions, task, self._settings.limit)
        facts = _facts(self._lm, self._settings)
        if self._tokenization is not None:
            facts["trained_with_bos"] = self._tokenization.puts_bos
        score = read_result(result, task.task, key, time.monotonic() - began, facts)
        lm_eval_file = score_file(self._out, key).with_suffix(".lm-eval.json")
        write_bytes(lm_eval_file, (result_text(result) + "\n").encode())
        keep_score(self._out, score, lm_eval_file.name)
        self._counter.report(_summary(score))
        return score


class _ForwardCounter:
    """Counts the rows of a task's forwards, and stops between two of them."""

    def __init__(self, model: str, stop: StopFlag, on_progress: Listener) -> None:
        self._model, self._stop, self._on_progress = model, stop, on_progress
        self._task, self._done = "", 0

    def begin(self, task: str) -> None:
        self._task, self._done = task, 0
        self.report("asked")

    def check(self) -> None:
        self._stop.check(f"the tasks before {self._task} are kept, for {self._model}")

    def report(self, message: str) -> None:
        self._on_progress(Progress(f"{self._model}: {self._task}", message=message))

    def __call__(self, rows: int) -> None:
        self.check()
        self._done += rows
        self._on_progress(Progress(f"{self._model}: {self._task}", self._done, 0, "rows"))


def _key(
    model: ModelDirectory, task: TaskDescription, settings: EvaluationSettings
) -> dict[str, Any]:
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
            total.update(name.encode() + bytes.fromhex(sha256(path / name)))
    return total.hexdigest()[:32]


def _facts(lm: Any, settings: EvaluationSettings) -> dict[str, Any]:
    """Record how the settings turned out for this tokenizer and machine."""
    ids = lm.tok_encode("a")
    bos = lm.tokenizer.bos_token_id
    return {
        "device": settings.device,
        "begins_with_bos": bool(ids) and bos is not None and ids[0] == bos,
        "max_length": int(lm.max_length),
    }


def _summary(score: Score) -> str:
    metrics = [f"{name} {m.value:.4g}" for name, m in score.metrics.items() if m.value is not None]
    return ", ".join(metrics[:3]) or "no number"
