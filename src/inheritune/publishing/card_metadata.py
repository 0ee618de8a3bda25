"""Make the metadata of a target's card: base model, data sets, scores."""

import re
from dataclasses import dataclass
from typing import Any

from inheritune.evaluation.suites import VAL_LOSS
from inheritune.model_files.card import carried_fields
from inheritune.run_record.record import RunRecord

PAPER = "2404.08634"  # arXiv
_MOST_DATASETS = 20
_MOST_SCORES = 200
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w-]*")


def metadata(record: RunRecord) -> dict[str, Any]:
    """Make the front matter of a card, as the Hub reads it."""
    reference = record.reference
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields |= carried_fields(reference.card)
    if reference.revision and reference.model:  # only a Hub model has a commit
        fields |= {"base_model": reference.model, "base_model_relation": "finetune"}
    if datasets := _datasets(record):
        fields["datasets"] = datasets
    fields["tags"] = ["inheritune", f"arxiv:{PAPER}"]
    if results := _results(record):
        name = record.name or "target"
        fields["model-index"] = [{"name": name, "results": results}]
    return fields


def _datasets(record: RunRecord) -> list[str]:
    """List the Hub datasets among the sources; only such a source has a commit."""
    if not record.tokens.commits:
        return []
    source = record.recipe_section("data").get("source")
    parts = source if isinstance(source, list) else [source]
    names = [part.get("source") if isinstance(part, dict) else part for part in parts]
    ids = [name for name in names if isinstance(name, str) and _DATASET.fullmatch(name)]
    return list(dict.fromkeys(ids))[:_MOST_DATASETS]


def _results(record: RunRecord) -> list[dict[str, Any]]:
    result, entries = record.result, []
    if result.val_loss is not None:
        metric: dict[str, Any] = {"type": "val_loss", "name": "val_loss, nats per token"}
        metric["value"] = result.val_loss
        if result.val_loss_se is not None:
            metric["args"] = {"standard_error": result.val_loss_se}
        entries.append(_result("held-out text of the run", "held-out", [metric]))
    for score in task_scores(record):
        metric = {"type": score.metric, "value": score.value, "args": score.args}
        entries.append(_result(score.task, score.task, [metric]))
    return entries


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task, with the arguments that the Hub shows beside it."""

    task: str
    metric: str
    value: float
    args: dict[str, Any]


def task_scores(record: RunRecord) -> list[TaskScore]:
    """List the scores of the target."""
    evaluation = record.evaluation
    version = evaluation.lm_eval_version or record.versions.get("lm_eval")
    scores = []
    for score in (s for m in evaluation.models if m.role == "target" for s in m.scores):
        for name, metric in score.metrics.items():
            if metric.value is None or not score.task or score.task == VAL_LOSS:
                continue
            args = {
                "standard_error": metric.se,
                "num_fewshot": None if score.shots is None else int(score.shots),
                "limit": score.key.get("limit"),
                "lm_eval_version": None if version is None else str(version)[:40],
            }
            hub_args = {key: value for key, value in args.items() if value is not None}
            scores.append(TaskScore(score.task, name, metric.value, hub_args))
    return scores[:_MOST_SCORES]


def _result(name: str, kind: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": name, "type": kind},
        "metrics": metrics,
    }
