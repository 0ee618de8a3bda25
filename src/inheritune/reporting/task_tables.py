"""Make tables of task scores in the papers' layouts: published rows first, then this run's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.evaluation.suites import SUITES, VAL_LOSS, Suite, SuiteTask
from inheritune.reporting.published_tables import compute_table, number_of, published
from inheritune.reporting.quantities import amount, exact, formatted
from inheritune.reporting.score_marks import BOLD_RULE, CHANCE_NOTE, at_chance, is_bold, share_se
from inheritune.reporting.section import PageSection
from inheritune.reporting.table import Column, Mark, Table
from inheritune.run_record.measurements import (
    EvaluatedModelRecord,
    Failure,
    MetricRecord,
    ScoreRecord,
)
from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel

_percent, _four_digits = formatted(".2f"), formatted(".4g")

_BOS_NOTE = "BOS before the questions is not as in training (--add-bos)."

# Settings that make two scores comparable, as `Score.key` has them.
_COMPARABLE = ("version", "limit", "batch_size", "dtype", "add_bos", "data", "lm_eval")


def task_section(record: RunRecord) -> PageSection | None:
    """Make the page's section on tasks and compute; None where nothing is recorded."""
    tables = task_tables(record)
    if not tables:
        return None
    has_scores = bool(record.evaluation.models)
    title = "Tasks and compute" if has_scores else "Compute beside published runs"
    return PageSection("tasks", title, tables=tables, folded=not has_scores)


def task_tables(record: RunRecord) -> list[Table]:
    """Make the tables that a record has something for: suites, all tasks, tokens, compute."""
    evaluation, tables = record.evaluation, list[Table]()
    if evaluation.models:
        suites = [SUITES[name] for name in evaluation.tasks if name in SUITES]
        tables += [published_table(record, suite) for suite in suites]
        tables.append(scores_table(evaluation.models, evaluation.failures))
    if evaluation.at:
        tables.append(tokens_table(record))
    if record.ledger:
        tables.append(compute_table(record))
    return tables


# --- a suite, beside what was published ---


# By suite: name of the table, file of the published rows, and those of its columns that hold model,
# start, layers, and tokens or steps; empty: it has no such column.
_LAYOUTS = {
    "low-data": ("table2_tasks", "table2_tasks", ("model", "reference", "", "train_tokens")),
    "full-data": ("table4_full_data", "table4_full_data", ("model", "init", "layers", "steps")),
    "later": ("later_tasks", "later_fineweb_tasks", ("model", "recipe", "layers", "")),
}
_OURS, _REFERENCE = "Ours-1.5B", "OpenLLaMA-3B"


@dataclass(frozen=True)
class _Cell:
    """One score, in the unit of its column."""

    value: float | None
    se: float | None = None
    note: str = ""  # a sentence for below the table
    comparable: bool = True  # measured as the published scores were


@dataclass(frozen=True)
class _Row:
    """One model."""

    label: list[Any]  # model, start, layers, tokens or steps
    cells: list[_Cell]
    role: str  # `reference`, `target` or `control`; `baseline` for other published models
    published: bool


def published_table(record: RunRecord, suite: Suite) -> Table:
    """List a suite's scores in the layout of its published table, whose rows come first.

    A record without scores of its own gives the published rows only.
    """
    name, file, label_columns = _LAYOUTS[suite.name]
    old = [_published_row(row, label_columns, suite.tasks) for row in published(file)]
    new = _own_rows(record, suite.tasks)
    marks: dict[tuple[int, int], Mark] = {}
    values = []
    for r, row in enumerate([*old, *new]):
        values.append([*row.label, *(cell.value for cell in row.cells), *_average(row, suite)])
        peers = old if row.published else new
        for c, (task, cell) in enumerate(zip(suite.tasks, row.cells, strict=True)):
            if cell.value is not None:
                bold = row.role == "target" and _is_bold(c, task, cell, peers, old)
                chance = task.percent and at_chance(cell.value, cell.se, task.floor)
                shown_se = None if row.published else cell.se
                marks[r, len(row.label) + c] = Mark(shown_se, bold, chance)
    columns = [
        Column("model"),
        Column("start"),
        Column("layers"),
        Column("tokens or steps"),
        *(_score_column(task.title, task.percent) for task in suite.tasks),
        *([Column(f"average of {len(suite.averaged)}", "%", _percent)] if suite.averaged else []),
    ]
    title = f"The suite {suite.name}, beside the published scores"
    return Table(name, columns, values, _notes(suite, new), title, marks)


def _score_column(title: str, is_share: bool) -> Column:
    return Column(title, "%", _percent) if is_share else Column(title, show=_four_digits)


def _published_row(
    row: dict[str, str], label_columns: Sequence[str], tasks: Sequence[SuiteTask]
) -> _Row:
    scores = [(number_of(row, task.key), task.items) for task in tasks]
    cells = [_Cell(v, None if v is None else share_se(v, items)) for v, items in scores]
    label = [row.get(column) or None for column in label_columns]
    model, start, *_ = label
    role = "baseline"
    if model == _OURS or start == "Ours":
        role = "target"
    elif model == _REFERENCE:
        role = "reference"
    return _Row(label, cells, role, True)


def _own_rows(record: RunRecord, tasks: Sequence[SuiteTask]) -> list[_Row]:
    models = record.evaluation.models
    # By size, too: stacking and variants that start grown have several.
    trained = {(row.name, row.layers): row for row in record.variants}
    reference = next((m for m in models if m.role == "reference"), EvaluatedModelRecord())
    rows = []
    for model in models:
        row = trained.get((model.name, model.layers), TrainedModel())
        cells = [
            _Cell(row.val_loss, row.val_loss_se, comparable=False)
            if task.name == VAL_LOSS
            else _own_cell(model, task, reference)
            for task in tasks
        ]
        label = [
            f"{model.name or ''} (this run)",
            row.start or None,
            None if model.layers is None else exact(model.layers),
            None if model.tokens is None else amount(model.tokens),
        ]
        rows.append(_Row(label, cells, model.role or "control", False))
    return rows


def _own_cell(
    model: EvaluatedModelRecord, task: SuiteTask, reference: EvaluatedModelRecord
) -> _Cell:
    score = model.score(task.name)
    if not score:
        return _Cell(None)
    who = f"{task.title}, {model.name}"
    metric = score.metrics.get(task.metric, MetricRecord())
    if metric.value is None:
        return _Cell(None, note=f"{who}: no {task.metric} in the result.")
    reference_score = reference.score(task.name)
    if reference_score and _settings(score) != _settings(reference_score):
        return _Cell(None, note=f"{who}: not measured like the reference, so not shown.")
    comparable = score.shots == task.shots and not score.key.get("limit")
    return _scaled(metric, task.percent, comparable)


def _settings(score: ScoreRecord) -> list[Any]:
    return [score.shots, *(score.key.get(name) for name in _COMPARABLE)]


def _is_bold(
    column: int, task: SuiteTask, cell: _Cell, peers: Sequence[_Row], old: Sequence[_Row]
) -> bool:
    assert cell.value is not None
    reference = next((row.cells[column].value for row in peers if row.role == "reference"), None)
    baselines = [
        value
        for row in old
        if row.role == "baseline" and (value := row.cells[column].value) is not None
    ]
    return is_bold(cell.value, reference, baselines if cell.comparable else [], task.lower)


def _average(row: _Row, suite: Suite) -> list[float | None]:
    if not suite.averaged:
        return []
    values = [
        cell.value
        for task, cell in zip(suite.tasks, row.cells, strict=True)
        if task.title in suite.averaged
    ]
    if not values or None in values:
        return [None]
    return [sum(value for value in values if value is not None) / len(values)]


def _notes(suite: Suite, new: Sequence[_Row]) -> list[str]:
    notes = [
        "Published rows: Sanyal et al., arXiv 2404.08634, as printed; the others are of this run.",
        BOLD_RULE,
        CHANCE_NOTE,
    ]
    if suite.name == "low-data":
        notes += [
            "Daggers of published rows use the binomial standard error of the number of questions.",
            "The average leaves MMLU out, and is empty where a score is missing.",
        ]
    cells = [cell for row in new for cell in row.cells]
    notes += [cell.note for cell in cells if cell.note]
    if any(cell.value is not None and not cell.comparable for cell in cells):
        notes.append(
            "Scores with a limit, with other shots or on other text than the published ones are "
            "not compared with these."
        )
    return notes


# --- all tasks, and tasks against tokens ---


def scores_table(models: Sequence[EvaluatedModelRecord], failures: Sequence[Failure] = ()) -> Table:
    """List every metric of every task, a row per model; failures become notes."""
    shares = _metrics_shown(models)
    floors = {(t.name, t.metric): t.floor for suite in SUITES.values() for t in suite.tasks}
    values: list[list[Any]] = []
    marks: dict[tuple[int, int], Mark] = {}
    notes: list[str] = []
    for r, model in enumerate(models):
        name = model.name or model.model or ""
        values.append([name])
        for c, ((task, metric_name), is_share) in enumerate(shares.items(), 1):
            cell = _scaled(model.score(task).metrics.get(metric_name), is_share)
            values[-1].append(cell.value)
            floor = floors.get((task, metric_name)) if is_share else None
            chance = cell.value is not None and at_chance(cell.value, cell.se, floor)
            marks[r, c] = Mark(cell.se, chance=chance)
            if cell.value is None:
                notes.append(f"{name}: no {metric_name} of {task}.")
    notes += [f"{f.model}: {f.task} failed: {f.message}" for f in failures]
    limits = {str(s.key["limit"]) for m in models for s in m.scores if s.key.get("limit")}
    if limits:
        notes.append(f"Each task used only its first {', '.join(sorted(limits))} questions.")
    notes += [f"{m.name or m.model}: {_BOS_NOTE}" for m in models if any(map(_other_bos, m.scores))]
    if any(mark.chance for mark in marks.values()):
        notes.append(CHANCE_NOTE)
    columns = [_score_column(f"{task}, {name}", share) for (task, name), share in shares.items()]
    return Table("tasks", [Column("model"), *columns], values, notes, "All tasks", marks)


def _other_bos(score: ScoreRecord) -> bool:
    trained, asked = (score.facts.get(name) for name in ("trained_with_bos", "begins_with_bos"))
    return isinstance(trained, bool) and isinstance(asked, bool) and trained != asked


def _scaled(metric: MetricRecord | None, is_share: bool, comparable: bool = True) -> _Cell:
    """Make a cell of a metric; shares are shown in percent."""
    if metric is None or metric.value is None:
        return _Cell(None)
    scale = 100.0 if is_share else 1.0
    se = None if metric.se is None else scale * metric.se
    return _Cell(scale * metric.value, se, comparable=comparable)


def tokens_table(record: RunRecord) -> Table:
    """List scores by training tokens, and the published comparison of repeated with fresh text."""
    ends = [model for model in record.evaluation.models if model.role != "reference"]
    snapshots = sorted(record.evaluation.at, key=_by_name_and_tokens)
    models = sorted([*snapshots, *ends], key=_by_name_and_tokens)
    plain = scores_table(models)
    columns = [plain.columns[0], Column("tokens", show=amount), *plain.columns[1:]]
    values = [
        [row[0], model.tokens, *row[1:]] for row, model in zip(plain.values, models, strict=True)
    ]
    marks = {(r, c + 1): mark for (r, c), mark in plain.marks.items()}
    printed = "; ".join(
        f"{row['data_pool']} pool, {row['data_used']}: {row['mmlu_5shot']}"
        for row in published("table3_repetition")
    )
    notes = [*plain.notes, f"Published MMLU (5 shots) of Ours-1.5B, v1 Table 5: {printed}."]
    return Table("table3_tokens", columns, values, notes, "Scores against training tokens", marks)


def _by_name_and_tokens(model: EvaluatedModelRecord) -> tuple[str, float]:
    return model.name or "", model.tokens or 0


def _metrics_shown(models: Sequence[EvaluatedModelRecord]) -> dict[tuple[str, str], bool]:
    """Choose the metrics that the suites use; of other tasks, the first two.

    Returns:
        For each pair of task and metric, True if the score is a share of the questions.
    """
    usual: dict[str, list[str]] = {}
    for suite in SUITES.values():
        for column in suite.tasks:
            usual.setdefault(column.name, []).append(column.metric)
    shares: dict[tuple[str, str], bool] = {}
    for score in (score for model in models for score in model.scores):
        task = score.task or ""
        for name in dict.fromkeys(usual.get(task) or list(score.metrics)[:2]):
            metric = score.metrics.get(name, MetricRecord())
            is_share = not metric.lower and (metric.value is None or 0 <= metric.value <= 1)
            shares.setdefault((task, name), is_share)
    return shares
