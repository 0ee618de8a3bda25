"""Read the scores of a task from lm-eval's result, and keep each score in a file."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.errors import DataError
from inheritune.evaluation.suites import MEAN_OF_SUBJECTS, VAL_LOSS
from inheritune.run_record.fields import finite_number
from inheritune.system.files import write_json
from inheritune.system.strict_json import read_json

FORMAT = 1  # of the file of a score


@dataclass(frozen=True)
class Metric:
    """One metric of a task, in lm-eval's own unit: accuracies are shares."""

    value: float | None  # None: lm-eval gives none, or it is not finite
    se: float | None = None  # standard error; None: lm-eval gives none
    lower: bool = False  # lower is better


@dataclass(frozen=True)
class Score:
    """The score of one model on one task."""

    task: str
    shots: int | None  # examples before each question
    items: int | None  # number of questions that were asked
    items_in_all: int | None  # number of questions of the task; larger than `items` under a limit
    metrics: dict[str, Metric]  # by name, such as ``acc``
    # Everything that the numbers depend on: digest of the model, task and version, settings.
    key: dict[str, Any]
    seconds: float  # wall-clock time
    facts: dict[str, Any]  # device, BOS and length of the model, for the record
    # val_loss only: nats per token of every window
    windows: list[float] = field(default_factory=list)


def score_file(out: Path, key: Mapping[str, Any]) -> Path:
    """Return the file that keeps the score with this `Score.key` in a directory of scores."""
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return out / f"{key['task']}-{digest[:16]}.json"


def find_score(out: Path, key: Mapping[str, Any]) -> Score | None:
    """Read the score that was kept under the same key, if there is one.

    A val_loss without its windows, of an earlier version, counts as none and is measured again.

    Raises:
        DataError: The file of that name holds something else.
    """
    path = score_file(out, key)
    if not path.exists():
        return None
    stored = read_json(path)
    try:
        fields = dict(stored["score"])
        fields["metrics"] = {name: Metric(**metric) for name, metric in fields["metrics"].items()}
        score = Score(**fields)
        same = stored["format"] == FORMAT and score.key == dict(key)
        has_windows = score.task != VAL_LOSS or len(score.windows) == score.items
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no score of ours.", "Remove it: it is measured again."
        ) from error
    if not same:
        raise DataError(f"{path} is of other settings.", "Remove it: it is measured again.")
    return score if has_windows else None


def keep_score(out: Path, score: Score, lm_eval_file: str | None = None) -> Path:
    """Write a score atomically, with the name of the file that holds lm-eval's own result."""
    path = score_file(out, score.key)
    write_json(path, {"format": FORMAT, "lm_eval_file": lm_eval_file, "score": asdict(score)})
    return path


def beside(score: Score, first: Sequence[Score]) -> Score:
    """Add the loss above the first model's on the same windows, paired; other windows add none."""
    from inheritune.evaluation.val_loss import paired_difference

    alike = ("data", "seq_len")
    if not first or any(score.key[key] != first[0].key[key] for key in alike):
        return score
    difference, error = paired_difference(np.array(score.windows), np.array(first[0].windows))
    above = Metric(finite_number(difference), finite_number(error), True)
    return replace(score, metrics=score.metrics | {"above_first": above})


def read_result(
    raw: Mapping[str, Any], task: str, key: Mapping[str, Any], seconds: float, facts: dict[str, Any]
) -> Score:
    """Turn the result of `lm_eval.evaluate` for one task or group into a `Score`."""
    results = raw.get("results") or {}
    values = (raw.get("groups") or {}).get(task) or results.get(task) or {}
    leaves = [name for name in results if name in (raw.get("n-samples") or {})]
    better = (raw.get("higher_is_better") or {}).get(task) or {}
    metrics = _metrics(values, better)
    if task not in leaves and len(leaves) > 1:  # a group: add the mean with equal weights
        metrics |= _mean_of_subjects([_metrics(results[name], {}) for name in leaves])
    shots = {_whole((raw.get("n-shot") or {}).get(name)) for name in leaves}
    return Score(
        task=task,
        shots=shots.pop() if len(shots) == 1 else None,
        items=_count(raw, leaves, "effective"),
        items_in_all=_count(raw, leaves, "original"),
        metrics=metrics,
        key=dict(key),
        seconds=round(seconds, 2),
        facts=facts,
    )


def _metrics(values: Mapping[str, Any], better: Mapping[str, Any]) -> dict[str, Metric]:
    metrics = {}
    for name, value in values.items():
        metric, comma, filter_name = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        se = _number(values.get(f"{metric}_stderr,{filter_name}"))
        title = metric if filter_name == "none" else f"{metric},{filter_name}"
        metrics[title] = Metric(_number(value), se, better.get(metric) is False)
    return metrics


def _mean_of_subjects(leaves: list[dict[str, Metric]]) -> dict[str, Metric]:
    accuracies = [leaf["acc"] for leaf in leaves if "acc" in leaf]
    values = [m.value for m in accuracies if m.value is not None]
    if not values or len(values) < len(leaves):
        return {}
    errors = [m.se for m in accuracies if m.se is not None]
    se = math.sqrt(sum(e * e for e in errors)) / len(errors) if len(errors) == len(values) else None
    return {MEAN_OF_SUBJECTS: Metric(sum(values) / len(values), se)}


def _count(raw: Mapping[str, Any], leaves: list[str], which: str) -> int | None:
    counts = [_whole((raw["n-samples"][name] or {}).get(which)) for name in leaves]
    return None if not counts or None in counts else sum(filter(None, counts))


def _number(value: Any) -> float | None:
    """Read a finite number; lm-eval writes ``N/A`` where it has none."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
