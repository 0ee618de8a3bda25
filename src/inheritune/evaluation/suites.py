"""List the tasks of the papers' tables: shots, metric, and the score of guessing."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.errors import RecipeError

VAL_LOSS = "val_loss"  # the one task that is measured on held-out tokens, without lm-eval
MEAN_OF_SUBJECTS = "acc_mean_of_subjects"


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite: one column of its table."""

    title: str  # title of the column
    name: str  # name in lm-eval
    metric: str = "acc"  # metric in the column
    shots: int | None = None  # examples before each question; None: as the task's file says
    chance: float | None = None  # score of guessing in percent; None: there is no such figure
    # Score of the best constant answer in percent, where it is above chance; for TruthfulQA, the
    # score of untrained models.
    constant: float | None = None
    key: str = ""  # column of the published tables
    lower: bool = False  # lower is better
    items: int | None = None  # number of questions behind the published score

    @property
    def floor(self) -> float | None:
        """Percent without any knowledge: the larger of chance and the best constant answer."""
        scores = [value for value in (self.chance, self.constant) if value is not None]
        return max(scores, default=None)

    @property
    def percent(self) -> bool:
        """Whether the score is shown in percent."""
        return not self.lower


@dataclass(frozen=True)
class Suite:
    """A named list of tasks."""

    name: str  # name in recipes and on the command line
    tasks: tuple[SuiteTask, ...]  # in the order of the published columns
    averaged: tuple[str, ...] = ()  # titles of the columns in the published average


# arXiv 2404.08634v1, Table 3. TruthfulQA has no chance level: untrained models score about 48-50.
_LOW_DATA = (
    SuiteTask("Winograd", "wsc", "acc", 0, 50.0, 63.46, "winograd_wsc", items=104),
    SuiteTask("PIQA", "piqa", "acc", 0, 50.0, None, "piqa", items=1838),
    SuiteTask("BoolQ", "boolq", "acc", 0, 50.0, 62.17, "boolq", items=3270),
    SuiteTask("WinoGrande", "winogrande", "acc", 0, 50.0, None, "winogrande", items=1267),
    SuiteTask("LogiQA", "logiqa", "acc", 0, 25.0, None, "logiqa", items=651),
    SuiteTask("MMLU (5)", "mmlu", MEAN_OF_SUBJECTS, 5, 25.0, None, "mmlu_5shot", items=14042),
    SuiteTask("WNLI", "wnli", "acc", 0, 50.0, 56.34, "wnli", items=71),
    SuiteTask("QNLI", "qnli", "acc", 0, 50.0, 50.54, "qnli", items=5463),
    SuiteTask("MNLI", "mnli", "acc", 0, 100 / 3, 35.45, "mnli", items=9815),
    SuiteTask("TruthfulQA", "truthfulqa_mc2", "acc", 0, None, 50.0, "truthfulqa", items=817),
)
_WIKITEXT = SuiteTask(
    "Wikitext ppl", "wikitext", "word_perplexity", 0, key="wikitext_ppl", lower=True
)
_LAMBADA = SuiteTask(
    "LAMBADA", "lambada_openai", "acc", 0, 0.0, key="lambada_openai_acc", items=5153
)
_LAMBADA_PPL = SuiteTask("LAMBADA ppl", "lambada_openai", "perplexity", 0, lower=True)
_VAL_LOSS = SuiteTask("val_loss", VAL_LOSS, VAL_LOSS, key="val_loss", lower=True)
_LATER = (
    SuiteTask("ARC-E", "arc_easy", "acc", 0, 25.0, None, "arc_easy_acc", items=2376),
    SuiteTask("PIQA", "piqa", "acc", 0, 50.0, None, "piqa_acc", items=1838),
    SuiteTask("SciQ", "sciq", "acc", 0, 25.0, None, "sciq_acc", items=1000),
    SuiteTask(
        "HellaSwag", "hellaswag", "acc_norm", 0, 25.0, None, "hellaswag_acc_norm", items=10042
    ),
    SuiteTask("LAMBADA", "lambada_openai", "acc", 0, 0.0, None, "lambada_acc", items=5153),
)

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "low-data",
            _LOW_DATA,
            tuple(q.title for q in _LOW_DATA if not q.title.startswith("MMLU")),
        ),
        Suite("full-data", (_VAL_LOSS, _WIKITEXT, _LAMBADA, _LAMBADA_PPL)),
        Suite("later", _LATER, tuple(task.title for task in _LATER)),
    )
}


def tasks_with_shots(
    names: Sequence[str], shots: int | None = None
) -> list[tuple[str, int | None]]:
    """Expand suites, and pair each task with its number of shots.

    Args:
        names: Tasks of lm-eval, suites, or ``val_loss``.
        shots: Examples before each question; None: as many as the suites say.

    Returns:
        Pairs of task and shots, each task once, in order. None for shots: as many as lm-eval's file
        of the task says.
    """
    pairs: dict[str, int | None] = {}
    for name in names:
        columns = [(q.name, q.shots) for q in SUITES[name].tasks] if name in SUITES else []
        for task, suite_shots in columns or [(name, None)]:
            pairs.setdefault(task, suite_shots if shots is None else shots)
    return list(pairs.items())


def unknown_task(name: str, known: Sequence[str]) -> RecipeError:
    """Make the error for a name that is neither a suite nor a task, with the closest names."""
    near = difflib.get_close_matches(name, [*SUITES, *known], 3, 0.7)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Suites: {', '.join(SUITES)}."
    return RecipeError(f"there is no task {name!r} in lm-eval.", hint)
