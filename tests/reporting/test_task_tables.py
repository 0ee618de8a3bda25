import csv
import io
from typing import Any

import pytest

from inheritune.evaluation.suites import SUITES
from inheritune.reporting.published_tables import compute_table, published
from inheritune.reporting.score_marks import CHANCE_NOTE, at_chance, is_bold, share_se
from inheritune.reporting.task_tables import published_table, scores_table, task_tables
from inheritune.run_record.measurements import EvaluatedModelRecord
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate

KEY = {"version": "1.0", "shots": 0, "limit": None, "batch_size": 16, "dtype": "fp32"}


def score(task: str, shots: int | None = 0, **metrics: float | None) -> dict[str, Any]:
    values = {name: {"value": value, "se": 0.01} for name, value in metrics.items()}
    return {"task": task, "shots": shots, "metrics": values, "key": KEY | {"shots": shots}}


def record(target: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    reference = [score("piqa", acc=0.75), score("boolq", acc=0.67), score("mmlu", 5, acc=0.27)]
    models = [
        {"name": "reference", "role": "reference", "layers": 26, "tokens": None},
        {"name": "inherit", "role": "target", "layers": 13, "tokens": 10**9},
    ]
    models[0]["scores"], models[1]["scores"] = reference, target
    return {"evaluation": {"tasks": ["low-data"], "models": models} | more}


def cell(table: Any, row: str, column: str) -> tuple[str, bool]:
    at = list(table.headers)
    r = next(i for i, values in enumerate(table.values) if values[0] == row)
    return table.rows[r][at.index(column)], table.is_bold(r, at.index(column))


def test_the_authors_bold_set_comes_out_ten_times_of_ten() -> None:
    table = published_table(typed({}), SUITES["low-data"])
    row = next(i for i, values in enumerate(table.values) if values[0] == "Ours-1.5B")
    printed = {row["task"]: row["bold_published"] == "yes" for row in published("table2_bold")}
    found = {q.key: table.is_bold(row, 4 + c) for c, q in enumerate(SUITES["low-data"].tasks)}
    assert found == printed
    assert len(found) == 10


def test_in_the_published_row_only_piqa_is_above_guessing() -> None:
    table = published_table(typed({}), SUITES["low-data"])
    row = next(i for i, values in enumerate(table.values) if values[0] == "Ours-1.5B")
    marked = {
        q.title: table.marks[row, 4 + c].chance for c, q in enumerate(SUITES["low-data"].tasks)
    }
    assert [title for title, chance in marked.items() if not chance] == ["PIQA"]


def test_the_published_average_of_nine_is_computed_again() -> None:
    table = published_table(typed({}), SUITES["low-data"])
    averages = {values[0]: round(values[-1], 2) for values in table.values}
    assert averages == {
        row["model"]: float(row["avg9_computed"]) for row in published("table2_tasks")
    }


@pytest.mark.parametrize(
    ("value", "reference", "baselines", "lower", "bold"),
    [
        (90.0, 100.0, [], False, True),
        (89.9, 100.0, [89.0, 90.0], False, False),
        (89.9, 100.0, [89.0, 89.8], False, True),
        (50.0, None, [], False, False),
        (3.0, 2.7, [], True, True),
        (3.01, 2.7, [], True, False),
    ],
)
def test_bold_is_nine_tenths_of_the_reference_or_better_than_two(
    value: float, reference: float | None, baselines: list[float], lower: bool, bold: bool
) -> None:
    assert is_bold(value, reference, baselines, lower) is bold


def test_chance_is_up_to_two_standard_errors_above_the_floor() -> None:
    assert at_chance(52.0, 1.0, 50.0)
    assert not at_chance(52.1, 1.0, 50.0)
    assert not at_chance(3.0, 1.0, None)
    assert share_se(50.0, 10_000) == 0.5


def test_the_runs_own_rows_stand_below_with_errors_and_marks() -> None:
    table = published_table(
        typed(record([score("piqa", acc=0.70), score("boolq", acc=0.5)])),
        SUITES["low-data"],
    )
    assert cell(table, "inherit (this run)", "PIQA (%)") == ("70.00 ± 1.00", True)
    assert cell(table, "inherit (this run)", "BoolQ (%)") == ("50.00 ± 1.00 †", False)
    assert cell(table, "inherit (this run)", "QNLI (%)") == ("—", False)
    assert cell(table, "reference (this run)", "PIQA (%)") == ("75.00 ± 1.00", False)


def test_e3_a_missing_metric_and_unlike_shots_are_a_dash_and_a_footnote() -> None:
    own = [score("piqa", acc_norm=0.7), score("boolq", acc=None), score("mmlu", 0, acc=0.26)]
    own[2]["metrics"]["acc_mean_of_subjects"] = {"value": 0.26, "se": 0.004}
    table = published_table(typed(record(own)), SUITES["low-data"])
    for column in ("PIQA (%)", "BoolQ (%)", "MMLU (5) (%)"):
        assert cell(table, "inherit (this run)", column) == ("—", False)
    notes = " ".join(table.notes)
    assert "PIQA, inherit: no acc in the result." in notes
    assert "MMLU (5), inherit: not measured like the reference" in notes


def test_with_a_limit_nothing_is_compared_with_published_baselines() -> None:
    limited = record([score("piqa", acc=0.74)])
    for model in limited["evaluation"]["models"]:
        for each in model["scores"]:
            each["key"]["limit"] = 50
    limited["evaluation"]["models"][0]["scores"] = []
    table = published_table(typed(limited), SUITES["low-data"])
    assert cell(table, "inherit (this run)", "PIQA (%)") == ("74.00 ± 1.00", False)
    assert "not compared with these" in " ".join(table.notes)


def test_scores_are_written_as_markdown_csv_and_latex() -> None:
    table = published_table(typed(record([score("piqa", acc=0.70)])), SUITES["low-data"])
    assert "| **70.00 ± 1.00** |" in table.markdown()
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert float(rows[-1]["PIQA (%)"]) == 70.0
    assert float(rows[-1]["PIQA (%) SE"]) == 1.0
    written = table.latex()
    assert r"\textbf{70.00 $\pm$ 1.00}" in written
    assert written.count(r"\\") == len(table.values) + 1
    assert r"PIQA (\%)" in written


def test_every_table_of_a_record_and_none_of_an_empty_one() -> None:
    assert task_tables(typed({})) == []
    at = [{"name": "inherit", "layers": 13, "tokens": 5, "scores": [score("piqa", acc=0.6)]}]
    whole = record(
        [score("piqa", acc=0.70)],
        at=at,
        failures=[{"model": "inherit", "task": "wsc", "message": "gone"}],
    )
    whole |= {"ledger": [{"item": "benchmark", "tokens": 0, "flops": 1e9, "seconds": 86_400}]}
    tables = {table.name: table for table in task_tables(typed(whole))}
    assert list(tables) == ["table2_tasks", "tasks", "table3_tokens", "table1_compute"]
    assert "wsc failed: gone" in " ".join(tables["tasks"].notes)
    assert [row[1] for row in tables["table3_tokens"].values] == [5, 10**9]
    assert "25.46" in " ".join(tables["table3_tokens"].notes)


def test_table_one_has_our_row_in_the_same_columns_and_what_is_wrong_with_the_others() -> None:
    ledger = [
        {"item": "reference training", "tokens": 9, "flops": 9.0, "seconds": 9, "borrowed": True},
        {"item": "inherit", "tokens": 2_000_000, "flops": 1e12, "seconds": 43_200},
    ]
    table = compute_table(
        typed({"ledger": ledger, "machine": {"processor": "EPYC", "device": "cpu"}})
    )
    assert table.rows[-1] == ["this run, all of it", "2M", "1", "EPYC", "0.5", "1.0 × 10¹²"]
    assert [row[0] for row in table.values[:-1]] == [
        r["model"] for r in published("table1_compute")
    ]
    assert "impossible as stated" in " ".join(table.notes)


def test_a_table_of_any_tasks_has_a_column_for_each_metric() -> None:
    models = [
        {"model": "a", "scores": [score("mine", acc=0.5, f1=0.4)]},
        {"model": "b", "scores": []},
    ]
    table = scores_table([EvaluatedModelRecord.model_validate(m) for m in models])
    assert table.headers == ["model", "mine, acc (%)", "mine, f1 (%)"]
    assert table.rows == [["a", "50.00 ± 1.00", "40.00 ± 1.00"], ["b", "—", "—"]]


def test_what_is_no_better_than_guessing_is_marked_there_too() -> None:
    def score(task: str, metric: str, value: float, se: float) -> dict[str, Any]:
        return {"task": task, "metrics": {metric: {"value": value, "se": se}}}

    scores = [
        score("winogrande", "acc", 0.55, 0.03),
        score("piqa", "acc", 0.70, 0.01),
        score("mine", "acc", 0.1, 0.1),  # nobody knows what guessing gives
    ]
    table = scores_table(
        [EvaluatedModelRecord.model_validate(m) for m in [{"name": "target", "scores": scores}]]
    )
    assert table.rows == [["target", "55.00 ± 3.00 †", "70.00 ± 1.00", "10.00 ± 10.00"]]
    assert CHANCE_NOTE in table.notes


def test_a_standard_error_of_a_large_value_has_digits_of_its_own() -> None:
    model = {"model": "a", "scores": [score("lambada_openai", perplexity=12345.678)]}
    (row,) = scores_table([EvaluatedModelRecord.model_validate(model)]).rows
    assert row == ["a", "—", "1.235e+04 ± 0.01"]


def test_a_hostile_name_stays_text() -> None:
    models = [{"model": "<b>|\\evil_{$", "scores": [score("mine", acc=0.5)]}]
    table = scores_table([EvaluatedModelRecord.model_validate(m) for m in models])
    assert "<b>" not in table.markdown()
    assert table.markdown().count("|") - table.markdown().count("\\|") == 3 * 3
    assert r"\textbackslash{}evil\_\{\$" in table.latex()
