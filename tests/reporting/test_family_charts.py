"""The page's section on sizes that need no training."""

from typing import Any

import pytest

from inheritune.reporting.family_charts import family_section
from inheritune.reporting.vega import svg
from inheritune.run_record.record import RunRecord

pytestmark = pytest.mark.drawn


def size(trained: int, layers: int, back: list[int], loss: float, **more: Any) -> dict[str, Any]:
    fields = {"trained_layers": trained, "layers": layers, "returned": back, "val_loss": loss}
    return fields | {"params": layers * 1000, "difference": loss - 2.0} | more


FAMILY = [
    size(3, 3, [], 2.5),
    size(3, 4, [2], 2.25),
    size(3, 5, [2, 6], 2.125),
    size(5, 5, [], 2.0625),
    size(5, 6, [4], 2.03125),
]


def record_of(family: list[dict[str, Any]]) -> RunRecord:
    fields = {"family": family, "benchmark": {"val_loss": 2.0}, "reference": {"layers": 7}}
    return RunRecord.model_validate(fields)


def points(spec: dict[str, Any]) -> list[tuple[str, float, float]]:
    return [
        (row["round"], row["layers"], row["value"])
        for layer in spec["layer"]
        if layer["mark"]["type"] == "point"
        for row in layer["data"]["values"]
    ]


def test_each_round_is_a_line_from_its_target_on() -> None:
    section = family_section(record_of(FAMILY))
    assert section is not None
    (chart,) = section.charts
    assert points(chart.spec) == [
        ("3 trained layers", 3, 2.5),
        ("3 trained layers", 4, 2.25),
        ("3 trained layers", 5, 2.125),
        ("5 trained layers", 5, 2.0625),
        ("5 trained layers", 6, 2.03125),
    ]
    rules = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "rule"]
    (rule,) = rules
    assert "2.0" in str(chart.spec) and rule["encoding"]["y"]["field"] == "value"
    assert svg(chart.spec).startswith("<svg")
    (table,) = section.tables
    assert table.rows[2][:5] == ["3", "5", "2, 6", "5K", "2.125"]
    assert table.rows[0][2] == "none, as trained"


def test_the_divergence_has_a_chart_of_its_own_where_it_was_measured() -> None:
    with_kl = [row | {"kl": 0.1 * number} for number, row in enumerate(FAMILY)]
    section = family_section(record_of(with_kl))
    assert section is not None
    assert [chart.name for chart in section.charts] == ["sizes-val-loss", "sizes-kl"]
    assert section.tables[0].headers[-1] == "KL (nats)"


def test_a_run_that_tried_no_size_has_no_section() -> None:
    assert family_section(record_of([])) is None
    assert family_section(record_of(FAMILY[:1])) is None
