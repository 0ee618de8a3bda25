"""Chart descriptions: the numbers in them, and what the pictures are drawn with."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from inheritune.reporting.curves import read_curves
from inheritune.reporting.loss_charts import loss_charts
from inheritune.reporting.section import Chart
from inheritune.reporting.vega import png, svg
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


@pytest.fixture(scope="module")
def charts(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Chart]:
    run = synthetic.build_run(tmp_path_factory.mktemp("charts"))
    return loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )


def _values(spec: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    return [
        row
        for layer in spec["layer"]
        if layer["mark"]["type"] == mark
        for row in spec.get("datasets", {}).get(
            layer["data"].get("name"), layer["data"].get("values", [])
        )
    ]


def test_first_chart_holds_every_validation_of_every_training(charts: list[Chart]) -> None:
    lines = _values(charts[0].spec, "line")
    assert len(lines) == 44
    ends = {row["variant"]: row for row in sorted(lines, key=lambda row: row["tokens"])}
    assert {name: (row["tokens"], row["val_loss"]) for name, row in ends.items()} == {
        "inherit (target)": (2_000_000, 2.0931),
        "scratch": (1_000_000, 2.9148),
        "equal-compute": (1_705_882, 2.6214),
    }


def test_reference_loss_and_growth_are_marked(charts: list[Chart]) -> None:
    rules = _values(charts[0].spec, "rule")
    assert {row["val_loss"] for row in rules if "reference loss" in row["label"]} == {2.1004}
    assert [row["tokens"] for row in rules if "layers" in row["label"]] == [1_000_000]


def test_second_chart_adds_the_reference_on_a_logarithmic_axis(charts: list[Chart]) -> None:
    lines = _values(charts[1].spec, "line")
    reference = [row for row in lines if row["variant"] == "the reference's own training"]
    assert (reference[0]["tokens"], reference[-1]["tokens"]) == (250_000, 30_000_000)
    assert reference[-1]["val_loss"] == 2.1
    assert all(row["tokens"] > 0 for row in lines)
    scales = [layer["encoding"]["x"].get("scale") for layer in charts[1].spec["layer"][:1]]
    assert scales[0]["type"] == "log"


def test_lines_differ_by_dash_and_shape_and_not_by_colour_alone(charts: list[Chart]) -> None:
    layers = [layer for layer in charts[1].spec["layer"] if layer["mark"]["type"] == "line"]
    assert len({tuple(layer["mark"]["strokeDash"]) for layer in layers}) == 4
    points = next(layer for layer in charts[1].spec["layer"] if layer["mark"]["type"] == "point")
    assert len(set(points["encoding"]["shape"]["scale"]["range"])) == 4


def test_alt_text_tells_where_each_line_ends(charts: list[Chart]) -> None:
    assert "inherit (target) ends at 2.093 after 2M tokens" in charts[0].alt
    assert "reference loss is drawn at 2.100" in charts[0].alt


def test_a_reference_without_a_curve_is_a_point_and_without_tokens_no_chart(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    record = synthetic.record()
    curves = read_curves(synthetic.build_run(tmp_path), typed(record))
    del record["reference"]["curve"]
    lines = _values(loss_charts(typed(record), curves)[1].spec, "line")
    assert [row["tokens"] for row in lines if "reference" in row["variant"]] == [30_000_000]
    del record["reference"]["trained_tokens"]
    assert len(loss_charts(typed(record), curves)) == 1


def test_no_measurements_make_no_chart(synthetic: ModuleType) -> None:
    assert loss_charts(typed(synthetic.record()), []) == []


def test_many_points_are_thinned(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    long = synthetic.metrics(1_000_000, 7.6, 2.2, steps=5000, evals=5000)
    (run / "variants/scratch/6-layers/metrics.jsonl").write_text(long)
    chart = loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )[0]
    assert len(_values(chart.spec, "line")) <= 1_200
    assert len(_values(chart.spec, "point")) <= 4 * 24


def test_a_single_value_is_a_chart(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    first = synthetic.metrics(1_000_000, 7.6, 2.2).splitlines()[0]
    for metrics in run.glob("variants/*/*/metrics.jsonl"):
        metrics.write_text(first + "\n")
    charts = loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )
    assert all("<svg" in svg(chart.spec) for chart in charts)


def test_pictures_are_pictures(charts: list[Chart]) -> None:
    assert svg(charts[0].spec).startswith("<svg")
    assert svg(charts[0].spec) == svg(charts[0].spec)
    assert png(charts[0].spec).startswith(b"\x89PNG")


def test_a_short_logarithmic_axis_has_numbers(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.record()
    record["reference"] |= {"curve": [[384, 7.6]], "trained_tokens": 384}
    run = synthetic.build_run(tmp_path)
    row = '{"step": 1, "tokens": 768, "val_loss": 7.5}'
    (run / "variants/scratch/6-layers/metrics.jsonl").write_text(f"{row}\n")
    curves = [curve for curve in read_curves(run, typed(record)) if curve.variant == "scratch"]
    chart = loss_charts(typed(record), curves)[1]
    ticks = chart.spec["layer"][0]["encoding"]["x"]["axis"]["values"]
    assert ticks == [400, 500, 600, 700, 800]


def test_a_dozen_variants_are_a_dozen_kinds_of_line(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    one = (run / "variants/scratch/6-layers/metrics.jsonl").read_bytes()
    for index in range(12):
        folder = run / f"variants/more-{index}/6-layers"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_bytes(one)
    chart = loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )[0]
    kinds = [
        (line["color"], tuple(line["dash"]), line["shape"])
        for line in chart.spec["usermeta"]["lines"]
    ]
    assert len(kinds) == len(set(kinds)) > 12
