"""Tables of tasks in the papers' layouts: published rows first, then the run's own.

The page shows them through `task_tables`; `scores_table` serves the `evaluate` command too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.evaluation.suites import SUITES, VAL_LOSS, Question, Suite
from inheritune.reporting.compute_table import compute_table, number_of, published
from inheritune.reporting.quantities import MISSING, amount, exact
from inheritune.reporting.record import Record, number, rows, section, text
from inheritune.reporting.score_table import (
    BOLD_RULE,
    CHANCE_NOTE,
    at_chance,
    is_bold,
    share_se,
)
from inheritune.reporting.section import Section
from inheritune.reporting.table import Column, Mark, Table

__all__ = ["published_table", "scores_table", "task_part", "task_tables", "tokens_table"]

# Settings that make two scores comparable, as they stand in a score's key.
_ALIKE = ("version", "shots", "limit", "batch_size", "dtype", "add_bos", "data", "lm_eval")


@dataclass(frozen=True)
class _Layout:
    """A published table: its file, and which of its columns say what a row is."""

    name: str
    file: str
    model: str
    start: str
    layers: str
    tokens: str


_LAYOUTS = {
    "low-data": _Layout("table2_tasks", "table2_tasks", "model", "reference", "", "train_tokens"),
    "full-data": _Layout(
        "table4_full_data", "table4_full_data", "model", "init", "layers", "steps"
    ),
    "later": _Layout("later_tasks", "later_fineweb_tasks", "model", "recipe", "layers", ""),
}
_OURS, _REFERENCE = "Ours-1.5B", "OpenLLaMA-3B"


def task_tables(record: Record) -> list[Table]:
    """Every table about tasks and compute that a record has something for.

    Args:
        record: ``run.json``, or any part of it; what is missing leaves its table out.

    Returns:
        Of the suites that were asked, in the papers' layout; of all tasks; of scores against
        tokens; of compute. Empty where no task was asked and nothing was trained.
    """
    found = section(record, "evaluation")
    models = rows(found, "models")
    asked = [str(name) for name in found.get("tasks") or []]
    tables: list[Table] = []
    if models:
        tables += [published_table(record, SUITES[name]) for name in asked if name in SUITES]
        tables.append(scores_table(models, rows(found, "failures")))
    if rows(found, "at"):
        tables.append(tokens_table(record))
    if rows(record, "ledger"):
        tables.append(compute_table(record))
    return tables


def task_part(record: Record) -> Section | None:
    """The page's section on tasks and compute; None where there is nothing for it."""
    tables = task_tables(record)
    if not tables:
        return None
    asked = bool(rows(section(record, "evaluation"), "models"))
    title = "Tasks and compute" if asked else "Compute"
    return Section("tasks", title, tables=tables)


# -- a suite, beside what was published


@dataclass(frozen=True)
class _Cell:
    value: float | None
    se: float | None = None
    note: str = ""
    alike: bool = True  # with the reference, and with how the published scores were asked


@dataclass(frozen=True)
class _Row:
    label: list[Any]
    cells: list[_Cell]
    role: str  # "reference", "target", "control", or of the published ones "baseline"
    published: bool


def published_table(record: Record, suite: Suite) -> Table:
    """A suite's scores in the layout of its published table, which stands above.

    Args:
        record: ``run.json``; without models of its own only the published rows are there.
        suite: Which.
    """
    layout = _LAYOUTS[suite.name]
    questions = list(suite.questions)
    old = [_published_row(row, layout, questions) for row in published(layout.file)]
    new = _own_rows(record, questions)
    marks: dict[tuple[int, int], Mark] = {}
    values, first = [], 4
    for r, row in enumerate([*old, *new]):
        values.append([*row.label, *(cell.value for cell in row.cells), *_average(row, suite)])
        beside = old if row.published else new
        for c, (question, cell) in enumerate(zip(questions, row.cells, strict=True)):
            if cell.value is not None:
                bold = row.role == "target" and _bold(c, question, cell, beside, old)
                dagger = question.percent and at_chance(cell.value, cell.se, question.floor)
                shown = None if row.published else cell.se
                marks[r, first + c] = Mark(shown, bold, dagger)
    columns = [
        Column("model"),
        Column("start"),
        Column("layers"),
        Column("tokens or steps"),
        *(Column(q.title, "%" if q.percent else "", _figure(q)) for q in questions),
        *([Column(f"average of {len(suite.averaged)}", "%", _percent)] if suite.averaged else []),
    ]
    title = f"The suite {suite.name}, beside the published scores"
    return Table(layout.name, columns, values, _notes(suite, new), title, marks=marks)


def _published_row(row: dict[str, str], layout: _Layout, questions: Sequence[Question]) -> _Row:
    cells = []
    for question in questions:
        value = number_of(row, question.key)
        se = None if value is None else share_se(value, question.items)
        cells.append(_Cell(value, se))
    label = [
        row[key] if key and row.get(key) else None
        for key in (layout.model, layout.start, layout.layers, layout.tokens)
    ]
    role = "baseline"
    if row[layout.model] == _OURS or row.get(layout.start) == "Ours":
        role = "target"
    elif row[layout.model] == _REFERENCE:
        role = "reference"
    return _Row(label, cells, role, True)


def _own_rows(record: Record, questions: Sequence[Question]) -> list[_Row]:
    models = rows(section(record, "evaluation"), "models")
    # By size, too: stacking and what starts grown have several.
    losses = {_named(row): row for row in rows(record, "variants")}
    reference = next((m for m in models if m.get("role") == "reference"), {})
    found = []
    for model in models:
        name = text(model, "name")
        cells = [
            _loss_cell(losses.get(_named(model), {}))
            if question.task == VAL_LOSS
            else _own_cell(model, question, reference)
            for question in questions
        ]
        tokens = number(model, "tokens")
        label = [
            f"{name} (this run)",
            text(losses.get(_named(model), {}), "start") or None,
            None if number(model, "layers") is None else exact(number(model, "layers")),
            None if tokens is None else amount(tokens),
        ]
        found.append(_Row(label, cells, text(model, "role") or "control", False))
    return found


def _named(row: Record) -> tuple[str, float | None]:
    return text(row, "name"), number(row, "layers")


def _own_cell(model: Record, question: Question, reference: Record) -> _Cell:
    score = _score_of(model, question.task)
    if not score:
        return _Cell(None)
    who = f"{question.title}, {text(model, 'name')}"
    metric = section(section(score, "metrics"), question.metric)
    value, se = number(metric, "value"), number(metric, "se")
    if value is None:
        return _Cell(None, note=f"{who}: no {question.metric} in the result.")
    theirs = _score_of(reference, question.task)
    if theirs and _settings(score) != _settings(theirs):
        return _Cell(None, note=f"{who}: asked otherwise than the reference, so not shown.")
    scale = 100.0 if question.percent else 1.0
    as_printed = score.get("shots") == question.shots and not section(score, "key").get("limit")
    return _Cell(scale * value, None if se is None else scale * se, alike=as_printed)


def _loss_cell(row: Record) -> _Cell:
    return _Cell(number(row, "val_loss"), number(row, "val_loss_se"), alike=False)


def _score_of(model: Record, task: str) -> dict[str, Any]:
    return next((score for score in rows(model, "scores") if score.get("task") == task), {})


def _settings(score: Record) -> list[Any]:
    key = section(score, "key")
    return [score.get("shots"), *(key.get(name) for name in _ALIKE if name != "shots")]


def _bold(
    place: int, question: Question, cell: _Cell, beside: Sequence[_Row], old: Sequence[_Row]
) -> bool:
    assert cell.value is not None
    reference = next((row.cells[place].value for row in beside if row.role == "reference"), None)
    baselines = [
        value
        for row in old
        if row.role == "baseline" and (value := row.cells[place].value) is not None
    ]
    return is_bold(cell.value, reference, baselines if cell.alike else [], question.lower)


def _average(row: _Row, suite: Suite) -> list[float | None]:
    if not suite.averaged:
        return []
    values = [
        cell.value
        for question, cell in zip(suite.questions, row.cells, strict=True)
        if question.title in suite.averaged
    ]
    known = [value for value in values if value is not None]
    return [sum(known) / len(known) if known and len(known) == len(values) else None]


def _notes(suite: Suite, new: Sequence[_Row]) -> list[str]:
    said = [
        "Published rows: Sanyal et al., arXiv 2404.08634, as printed; the others are of this run.",
        BOLD_RULE,
        CHANCE_NOTE,
    ]
    if suite.name == "low-data":
        said.append(
            "Published daggers: with the binomial standard error of the number of questions."
        )
        said.append("The average leaves MMLU out, and is empty where a score is missing.")
    cells = [cell for row in new for cell in row.cells]
    said += [cell.note for cell in cells if cell.note]
    if any(cell.value is not None and not cell.alike for cell in cells):
        said.append(
            "Scores with a limit, other shots or other text than the published ones are not "
            "compared with these."
        )
    return said


# -- all tasks, and tasks against tokens


def scores_table(
    models: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]] = ()
) -> Table:
    """Every metric of every task, a row each model.

    Args:
        models: With ``name`` or ``model``, and ``scores`` as `evaluate.scores` keeps them.
        failures: With ``model``, ``task`` and ``message``; they become notes.
    """
    shown = _metrics_shown(models)
    columns = [Column("model"), *(Column(f"{t}, {m}", u, f) for (t, m), (u, f) in shown.items())]
    values: list[list[Any]] = []
    marks: dict[tuple[int, int], Mark] = {}
    notes: list[str] = []
    floors = {(q.task, q.metric): q.floor for suite in SUITES.values() for q in suite.questions}
    for r, model in enumerate(models):
        name = text(model, "name") or text(model, "model")
        values.append([name])
        for c, ((task, metric), (unit, _)) in enumerate(shown.items(), 1):
            found = section(section(_score_of(model, task), "metrics"), metric)
            scale = 100.0 if unit else 1.0
            value, se = (
                None if part is None else scale * part
                for part in (number(found, "value"), number(found, "se"))
            )
            values[-1].append(value)
            floor = floors.get((task, metric)) if unit else None
            marks[r, c] = Mark(se, chance=value is not None and at_chance(value, se, floor))
            if value is None:
                notes.append(f"{name}: no {metric} of {task}.")
    notes += [
        f"{text(f, 'model')}: {text(f, 'task')} failed: {text(f, 'message')}" for f in failures
    ]
    keys = [section(score, "key") for model in models for score in rows(model, "scores")]
    if limits := {str(key["limit"]) for key in keys if key.get("limit")}:
        notes.append(
            f"Only the first {', '.join(sorted(limits))} questions of each task were asked."
        )
    if any(mark.chance for mark in marks.values()):
        notes.append(CHANCE_NOTE)
    return Table("tasks", columns, values, notes, "All tasks", marks=marks)


def tokens_table(record: Record) -> Table:
    """Scores against training tokens, and the published comparison of repeated with fresh ones."""
    found = section(record, "evaluation")
    points = sorted(
        rows(found, "at"), key=lambda row: (text(row, "name"), number(row, "tokens") or 0)
    )
    ends = [m for m in rows(found, "models") if m.get("role") != "reference"]
    models = [*points, *ends]
    plain = scores_table(models)
    columns = [plain.columns[0], Column("tokens", show=amount), *plain.columns[1:]]
    values = [
        [row[0], number(model, "tokens"), *row[1:]]
        for row, model in zip(plain.values, models, strict=True)
    ]
    order = sorted(range(len(values)), key=lambda i: (str(values[i][0]), values[i][1] or 0.0))
    marks = {(order.index(r), c + 1 if c else c): mark for (r, c), mark in plain.marks.items()}
    printed = "; ".join(
        f"{row['data_pool']} pool, {row['data_used']}: {row['mmlu_5shot']}"
        for row in published("table3_repetition")
    )
    notes = [*plain.notes, f"Published MMLU (5 shots) of Ours-1.5B, v1 Table 5: {printed}."]
    title = "Scores against training tokens"
    ordered = [values[i] for i in order]
    return Table("table3_tokens", columns, ordered, notes, title, marks=marks)


def _metrics_shown(models: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[str, Any]]:
    usual: dict[str, list[str]] = {}
    for suite in SUITES.values():
        for question in suite.questions:
            usual.setdefault(question.task, []).append(question.metric)
    found: dict[tuple[str, str], tuple[str, Any]] = {}
    for model in models:
        for score in rows(model, "scores"):
            task = text(score, "task")
            metrics = section(score, "metrics")
            wanted = usual.get(task) or list(metrics)[:2]
            for name in dict.fromkeys(wanted):
                metric = section(metrics, name)
                value = number(metric, "value")
                share = not metric.get("lower") and (value is None or 0 <= value <= 1)
                found.setdefault((task, name), ("%", _percent) if share else ("", _four))
    return found


def _figure(question: Question) -> Any:
    return _percent if question.percent else _four


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _four(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"
