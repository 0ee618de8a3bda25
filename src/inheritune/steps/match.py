"""Judge a target by the criteria of the recipe's `grow.match`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from inheritune.errors import DataError
from inheritune.evaluation.suites import SUITES
from inheritune.recipe.variants import Match
from inheritune.steps.job import Job
from inheritune.steps.reference import Reference
from inheritune.steps.result import TrainingResult
from inheritune.steps.tasks import RunModel, scores_of, tasks_of

# An excess within this many standard errors of a limit is called noise.
_NOISE_SE = 2.0
VERDICTS = ("matched", "matched_within_noise", "not_matched")  # the best first
_METRICS = {q.name: q.metric for suite in SUITES.values() for q in suite.tasks if not q.lower}
_ACCURACIES = ("acc", "acc_norm", "exact_match")


def verdicts_of(result: TrainingResult, match: Match) -> dict[str, str]:
    """Give the verdict on each criterion that a recipe has, by its key.

    Args:
        result: Its ``difference`` is target - reference, nats per token, with a standard error;
            ``fidelity`` and ``task_loss`` were measured where a criterion needs them.

    Returns:
        ``"matched"`` where the limit is kept, ``"matched_within_noise"`` where it is passed by two
        standard errors at most, else ``"not_matched"``. The val_loss of a target that rounding its
        weights moved by more than a standard error has not matched.
    """
    verdicts = {}
    if match.val_loss is not None:
        excess = result.difference - match.val_loss
        verdicts["val_loss"] = _verdict(excess, result.difference_se)
        if result.is_moved_by_rounding:
            verdicts["val_loss"] = VERDICTS[-1]
    # Of models that were not compared, nothing is known to be met.
    close: Mapping[str, float] = result.fidelity or {"kl": math.inf, "top1": -math.inf}
    if match.kl is not None:
        verdicts["kl"] = _verdict(close["kl"] - match.kl, close.get("kl_se"))
    if match.top1 is not None:
        verdicts["top1"] = _verdict(match.top1 - close["top1"], close.get("top1_se"))
    if match.tasks is not None:
        lost: Mapping[str, float] = result.task_loss or {"mean": math.inf}
        verdicts["tasks"] = _verdict(lost["mean"] - match.tasks, lost.get("se"))
    return verdicts


def worst(verdicts: Mapping[str, str]) -> str:
    """The verdict on all criteria together: a target must meet each, and one at least."""
    return max(verdicts.values(), key=VERDICTS.index, default=VERDICTS[-1])


def _verdict(excess: float, se: float | None) -> str:
    if excess <= 0:
        return VERDICTS[0]
    return VERDICTS[1] if excess <= _NOISE_SE * (se or 0.0) else VERDICTS[2]


def with_task_loss(job: Job, result: TrainingResult, reference: Reference) -> TrainingResult:
    """Add to a result by how much its tasks lie below the reference's, where it is judged by that.

    Every answer is kept, and not asked again after the trainings.

    Raises:
        DataError: A task could not be asked, or none has a score that can be compared.
    """
    if job.recipe.grow.match.tasks is None:
        return result
    tokens, folder = reference.training.get("tokens"), job.run.root / result.path
    models = [
        RunModel("reference", "reference", reference.layers, tokens, reference.model.path),
        RunModel(result.name, "target", result.layers, result.tokens, folder / "model"),
    ]
    record = scores_of(job, tasks_of(job.recipe), models)
    for failure in record["failures"]:
        raise DataError(
            f"{failure['model']} was not asked {failure['task']}: {failure['message']}",
            "grow.match.tasks needs it: mend that and give the command again.",
        )
    shares = [{s["task"]: _share(s) for s in row["scores"]} for row in record["models"]]
    pairs = {task: (shares[0][task], shares[1][task]) for task in shares[0]}
    known = {task: (a, b) for task, (a, b) in pairs.items() if a is not None and b is not None}
    if not known:
        raise DataError(
            f"none of {', '.join(pairs)} has a score from 0 to 1 that is better the higher it is.",
            "grow.match.tasks needs one: name another task in evaluate.tasks.",
        )
    losses = [a["value"] - b["value"] for a, b in known.values()]
    errors = [one["se"] for pair in known.values() for one in pair]
    se = None if None in errors else math.hypot(*errors) / len(losses)
    loss = {"mean": sum(losses) / len(losses), "se": se, "tasks": [*known]}
    return replace(result, task_loss=loss)


def _share(score: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metric to compare models by: that of the papers' tables, else an accuracy."""
    metrics = score["metrics"]
    for name in (_METRICS.get(score["task"]), *_ACCURACIES, *metrics):
        metric = metrics.get(name, {})
        value = metric.get("value")
        if value is not None and not metric["lower"] and 0 <= value <= 1:
            return dict(metric)
    return None
