"""The page's section on attention: its charts, tables and sentences."""

import copy
import json
import math
from itertools import pairwise
from typing import Any

import pytest

from inheritune.reporting.attention_charts import attention_section
from inheritune.reporting.page import write_report
from inheritune.reporting.vega import svg
from inheritune.run_record.record import RunRecord

pytestmark = pytest.mark.drawn

typed = RunRecord.model_validate


def layer(number: int, ranks: list[float]) -> dict[str, Any]:
    return {
        "layer": number,
        "max_rank": max(ranks),
        "avg_mass": 20.0,
        "sink_share": 0.5,
        "heads_near_one": 0.0,
        "lazy": max(ranks) == 1,
        "rank": ranks,
    }


def model(role: str, ranks: list[list[float]]) -> dict[str, Any]:
    count = len(ranks)
    return {
        "role": role,
        "name": role,
        "layers": count,
        "attention": {"layers": [layer(n, r) for n, r in enumerate(ranks)]},
        "importance": {
            "layers": [
                {"layer": n, "influence": 0.1 * n, "angle": 0.1, "removal_loss": 0.5}
                for n in range(count)
            ]
        },
    }


ANALYSIS = {
    "format": 1,
    "threshold": 0.9,
    "sequences": {"sequences": 100, "tokens_per_sequence": 100, "bos": False},
    "calibration": {"pure sink": {"rank": 1, "mass": 1}},
    "models": [
        model("reference", [[20.0, 8.0], [9.0, 3.0], [1.0, 1.0]]),
        model("target", [[22.0, 8.0], [9.0, 4.0]]),
    ],
    "advice": {"paper": 1, "advice": 2, "reason": "layers 2 to 2 are a lazy group"},
}


def record(synthetic: Any) -> dict[str, Any]:
    return copy.deepcopy(synthetic.RECORD) | {"analysis": copy.deepcopy(ANALYSIS)}


def test_every_head_has_its_rank_in_the_heat_map():
    part = attention_section(typed({"analysis": ANALYSIS}))
    charts = {chart.name: chart for chart in part.charts}
    assert list(charts) == [
        "attention-heads-reference", "attention-heads-target", "attention-rank",
        "attention-mass", "layer-influence", "layer-removal",
    ]  # fmt: skip
    cells = charts["attention-heads-reference"].spec["layer"][0]["data"]["values"]
    assert [(c["layer"], c["head"], c["rank"]) for c in cells] == [
        (0, 0, 20.0), (0, 1, 8.0), (1, 0, 9.0), (1, 1, 3.0), (2, 0, 1.0), (2, 1, 1.0),
    ]  # fmt: skip
    assert "lazy layers are marked" in charts["attention-heads-reference"].caption
    assert "no layer is lazy" in charts["attention-heads-target"].caption
    assert '"name": "sink"' in json.dumps(charts["attention-rank"].spec)
    for chart in charts.values():
        assert svg(chart.spec).startswith("<svg")


def test_the_sentences_name_lazy_layers_and_both_advices():
    said = " ".join(attention_section(typed({"analysis": ANALYSIS})).text)
    assert "The reference has 1 lazy of 3 layers: 2." in said
    assert "The target has 0 lazy of 2 layers." in said
    assert "1 by the papers' rule, 2 by this analysis" in said
    assert "is of validation text; a recipe with inherit.layers: advice goes by one of" in said


def test_a_run_without_analysis_has_no_section():
    for analysis in (None, {}, {"models": []}, {"models": "no"}, {"models": [{"layers": 3}]}):
        assert attention_section(typed({"analysis": analysis})) is None


@pytest.mark.parametrize("key", ["sequences", "calibration", "advice", "threshold", "models"])
@pytest.mark.parametrize("wrong", [None, 3, "x", [], [{}], {"a": 1}])
def test_anything_of_it_may_be_wrong(key, wrong):
    attention_section(typed({"analysis": ANALYSIS | {key: wrong}}))


@pytest.mark.parametrize("key", ["layer", "max_rank", "rank", "lazy", "avg_mass"])
@pytest.mark.parametrize("wrong", [None, "x", [None], -1, 10**9])
def test_and_anything_of_a_layer(key, wrong):
    analysis = copy.deepcopy(ANALYSIS)
    for row in analysis["models"][0]["attention"]["layers"]:
        row[key] = wrong
    for chart in attention_section(typed({"analysis": analysis})).charts:
        assert chart.alt and chart.table.rows is not None


def test_the_page_shows_it(synthetic, tmp_path):
    run = synthetic.build_run(tmp_path, record(synthetic))
    page = write_report(run).read_text("utf-8")
    assert '<h2 id="inside">Attention and layers</h2>' in page
    assert page.count('class="chart"') == 10
    assert (run / "report/tables/layers.csv").is_file()
    assert (run / "report/figures/attention-rank.svg").is_file()
    assert len(page.encode()) < 1_500_000


def test_names_at_the_right_edge_keep_their_distance_on_the_logarithmic_axis() -> None:
    masses = {"window of 8": 86, "previous token": 89, "pure sink": 1, "uniform over the past": 30}
    known = {"calibration": {name: {"mass": mass} for name, mass in masses.items()}}
    (chart,) = (
        chart
        for chart in attention_section(typed({"analysis": ANALYSIS | known})).charts
        if chart.name == "attention-mass"
    )
    height = math.log(1.1 * 100 / 0.9)
    (names,) = (
        [(row["name"], math.log(row["value"] / 0.9) / height) for row in layer["data"]["values"]]
        for layer in chart.spec["layer"]
        if layer["mark"].get("style") == "halo" and len(layer["data"]["values"]) > 2
    )
    places = sorted(place for _, place in names)
    assert {name for name, _ in names} >= {"sink", "uniform", "window", "previous", "reference"}
    assert places[0] >= 0 and places[-1] <= 1
    assert all(b - a > 0.0499 for a, b in pairwise(places))
    assert (
        "pure sink: 1, uniform over the past: 30, window of 8: 86, previous token: 89"
        in chart.caption
    )
