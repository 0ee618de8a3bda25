"""A table of scores: standard errors, what is bold and what is no better than guessing.

Task scores of the target, from whatever of them the record holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inheritune.reporting.record import Record, number, section, target_name

__all__ = [
    "BOLD_RULE",
    "CHANCE_NOTE",
    "Score",
    "at_chance",
    "is_bold",
    "score_results",
    "share_se",
]

_MOST = 200
_ERRORS = ("standard_error", "stderr", "se", "value_se")
_SHOTS = ("num_fewshot", "n_shot", "shots")
_VALUES = ("value", "score")


@dataclass(frozen=True)
class Score:
    """One score of the target.

    Attributes:
        task: Its name in lm-eval.
        metric: Such as ``acc``.
        value: The score.
        args: ``standard_error``, ``num_fewshot`` and ``lm_eval_version``, as far as known;
            ``limit`` where only so many questions were asked.
    """

    task: str
    metric: str
    value: float
    args: dict[str, Any] = field(default_factory=dict)


def score_results(record: Record) -> list[Score]:
    """The scores under ``evaluation`` that are the target's, in their order.

    Args:
        record: run.json. Read are models with their ``scores``, each with a task and ``metrics``;
            rows with ``model``, ``task``, ``metric`` and ``value``; and results by task as lm-eval
            writes them. Anything else is passed over.
    """
    kept = record.get("evaluation")
    if isinstance(kept, dict):
        version = kept.get("lm_eval_version") or section(record, "versions").get("lm_eval")
        names = ("models", "rows", "scores", "results")
        rows = next((kept[key] for key in names if key in kept), kept)
    else:
        version, rows = None, kept
    name = target_name(record)
    if isinstance(rows, dict) and isinstance(rows.get(name), dict):
        rows = section(rows, name)
        rows = rows.get("results", rows)
    found = _of_rows(rows, name) if isinstance(rows, list) else _of_tasks(rows)
    known = {} if version is None else {"lm_eval_version": str(version)[:40]}
    return [Score(s.task, s.metric, s.value, s.args | known) for s in found[:_MOST]]


def _of_rows(rows: list[Any], name: str) -> list[Score]:
    found = []
    for row in rows:
        if not isinstance(row, dict) or not _is_target(row, name):
            continue
        if isinstance(row.get("scores"), list):
            found += [score for one in row["scores"] for score in _of_metrics(one)]
            continue
        value = _first(row, _VALUES)
        if value is not None and row.get("task"):
            metric = str(row.get("metric") or "acc")
            found.append(Score(str(row["task"]), metric, value, _args(row, _ERRORS)))
    return found


def _is_target(row: dict[str, Any], name: str) -> bool:
    """Whether a row is the target's: a run gives its models a role, others only a name."""
    if "role" in row:
        return bool(row["role"] == "target")
    model = row.get("model", row.get("name", name))
    return model in (name, "target") or str(model).endswith("/target")


def _of_metrics(score: Any) -> list[Score]:
    """``{"task": "piqa", "shots": 0, "metrics": {"acc": {"value": 0.6, "se": 0.01}}}``."""
    if not isinstance(score, dict) or not score.get("task"):
        return []
    found = []
    for name, metric in section(score, "metrics").items():
        value = number(metric, "value") if isinstance(metric, dict) else None
        if value is not None and str(score["task"]) != "val_loss":  # that one the run has itself
            args = _args(metric | {key: score.get(key) for key in _SHOTS}, _ERRORS)
            if (limit := number(section(score, "key"), "limit")) is not None:
                args["limit"] = int(limit)
            found.append(Score(str(score["task"]), str(name), value, args))
    return found


def _of_tasks(tasks: Any) -> list[Score]:
    """``{"piqa": {"acc,none": 0.6, "acc_stderr,none": 0.01}}``, as lm-eval has it."""
    found = []
    for task, metrics in tasks.items() if isinstance(tasks, dict) else ():
        for key in metrics if isinstance(metrics, dict) else ():
            metric, _, kind = str(key).partition(",")
            if metric.endswith("_stderr") or metric in (*_SHOTS, "alias", "samples"):
                continue
            value = number(metrics, key)
            if value is not None:
                error = f"{metric}_stderr,{kind}" if kind else f"{metric}_stderr"
                found.append(Score(str(task), metric, value, _args(metrics, (error,))))
    return found


def _args(row: dict[str, Any], errors: tuple[str, ...]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if (error := _first(row, errors)) is not None:
        args["standard_error"] = error
    if (shots := _first(row, _SHOTS)) is not None:
        args["num_fewshot"] = int(shots)
    return args


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> float | None:
    return next((value for key in keys if (value := number(row, key)) is not None), None)


_BOLD_SHARE = 0.9
BOLD_RULE = (
    "Bold, by the authors' rule: at least 90 % of the reference, or better than at least two "
    "published baselines; of losses and perplexities, at most the reference / 0.9. It alone is no "
    "claim: see the marks."
)
CHANCE_NOTE = (
    "†: not more than two standard errors above guessing or the best constant answer (TruthfulQA: "
    "above untrained models)."
)


def is_bold(
    score: float, reference: float | None, baselines: Sequence[float], lower: bool = False
) -> bool:
    """The authors' rule, which gives their bold set 10 times of 10.

    Args:
        score: Of the model in question.
        reference: Of what it was inherited from, measured alike; None: not measured.
        baselines: Published scores of other models.
        lower: Whether lower is better.
    """
    if lower:
        near = reference is not None and score <= reference / _BOLD_SHARE
        return near or sum(score < other for other in baselines) >= 2
    near = reference is not None and score >= _BOLD_SHARE * reference
    return near or sum(score > other for other in baselines) >= 2


def at_chance(score: float, se: float | None, floor: float | None) -> bool:
    """Whether a score is not more than two standard errors above what takes no knowledge."""
    return floor is not None and floor > 0 and score <= floor + 2 * (se or 0.0)


def share_se(percent: float, items: int | None) -> float | None:
    """Standard error of a printed percentage of so many questions, in percent."""
    if not items or not 0 <= percent <= 100:
        return None
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / items)
