"""What a model answered to a task: read from lm-eval's result, kept as one file, found again."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import DataError
from inheritune.evaluation.suites import MEAN_OF_SUBJECTS
from inheritune.system.files import write_json
from inheritune.system.strict_json import read_json

__all__ = ["FORMAT", "Metric", "Score", "find_score", "keep_score", "read_result", "score_file"]

FORMAT = 1


@dataclass(frozen=True)
class Metric:
    """One number of a task, in lm-eval's own unit: accuracies are shares.

    Attributes:
        value: None where there is none, or it is not finite.
        se: Its standard error; None where lm-eval gives none.
        lower: Whether lower is better.
    """

    value: float | None
    se: float | None = None
    lower: bool = False


@dataclass(frozen=True)
class Score:
    """What one model answered to one task.

    Attributes:
        task: Its name.
        shots: Examples before each question.
        items: Questions that were asked.
        items_in_all: Questions that there are; more where a limit was given.
        metrics: By name, such as ``acc``.
        key: All that decides the numbers, see `score_file`.
        seconds: It took.
        facts: Of the machine and the tokenizer, for the record.
    """

    task: str
    shots: int | None
    items: int | None
    items_in_all: int | None
    metrics: dict[str, Metric]
    key: dict[str, Any]
    seconds: float
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def score_file(out: Path, key: Mapping[str, Any]) -> Path:
    """Where a score is kept.

    Args:
        out: Directory of all scores.
        key: Digest of the model, task and version, settings: what the numbers depend on.
    """
    known = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return out / f"{key['task']}-{known[:16]}.json"


def find_score(out: Path, key: Mapping[str, Any]) -> Score | None:
    """The score of an earlier time, if there is one of the same key.

    Raises:
        DataError: There is a file, and it is not what was written.
    """
    path = score_file(out, key)
    if not path.exists():
        return None
    stored = read_json(path)
    try:
        found = dict(stored["score"])
        found["metrics"] = {name: Metric(**metric) for name, metric in found["metrics"].items()}
        score = Score(**found)
        same = stored["format"] == FORMAT and score.key == dict(key)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no score of ours.", "Remove it: it is measured again."
        ) from error
    if not same:
        raise DataError(f"{path} is of other settings.", "Remove it: it is measured again.")
    return score


def keep_score(out: Path, score: Score, own: str | None = None) -> Path:
    """Write a score; the file is there whole or not at all."""
    path = score_file(out, score.key)
    write_json(path, {"format": FORMAT, "lm_eval_file": own, "score": score.as_json()})
    return path


def read_result(
    raw: Mapping[str, Any], task: str, key: Mapping[str, Any], seconds: float, facts: dict[str, Any]
) -> Score:
    """Read what `lm_eval.evaluate` returned for one task or group.

    Args:
        raw: Its result.
        task: Name of the task or group.
        key: For `score_file`.
        seconds: It took.
        facts: See `Score`.
    """
    results = raw.get("results") or {}
    own = (raw.get("groups") or {}).get(task) or results.get(task) or {}
    leaves = [name for name in results if name in (raw.get("n-samples") or {})]
    better = (raw.get("higher_is_better") or {}).get(task) or {}
    metrics = _metrics(own, better)
    if task not in leaves and len(leaves) > 1:  # a group: also the mean in which each counts alike
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


def _metrics(own: Mapping[str, Any], better: Mapping[str, Any]) -> dict[str, Metric]:
    found = {}
    for name, value in own.items():
        metric, comma, chosen = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        se = _number(own.get(f"{metric}_stderr,{chosen}"))
        shown = metric if chosen == "none" else f"{metric},{chosen}"
        found[shown] = Metric(_number(value), se, better.get(metric) is False)
    return found


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
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _number(value: Any) -> float | None:
    """A finite number; lm-eval writes ``N/A`` where it has none."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
