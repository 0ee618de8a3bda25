"""How trainings went: steps, smoothing, axes, speed, tokens to reach a loss, what is going on."""

import json
import math
from pathlib import Path
from types import ModuleType

import altair
import pytest

from inheritune.reporting.course_charts import speed_chart, training_chart
from inheritune.reporting.curves import read_curves
from inheritune.reporting.loss_charts import loss_charts
from inheritune.reporting.metrics_file import read_metrics
from inheritune.reporting.progress import trainings_in_progress
from inheritune.reporting.series import axes_of, moving_average, val_lines
from inheritune.reporting.training_tables import reach_table, speed_table
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


@pytest.fixture
def run(synthetic: ModuleType, tmp_path: Path) -> Path:
    return synthetic.build_run(tmp_path)


def test_smoothing_is_the_mean_of_the_last_finite_values() -> None:
    assert moving_average([4.0, 2.0, math.nan, 6.0, 0.0], 2) == [4.0, 3.0, 2.0, 6.0, 3.0]
    assert math.isnan(moving_average([math.nan], 3)[0])


def test_a_moment_stands_on_every_axis_with_earlier_rounds(
    run: Path, synthetic: ModuleType
) -> None:
    second = read_curves(run, typed(synthetic.record()))[1]
    assert second.position(500_000) == {
        "tokens": 1_500_000,
        "steps": 150,
        "flops": pytest.approx(1.2e13 + 0.85e13),
        "seconds": 90.0,
    }


def test_what_is_not_known_has_no_axis(run: Path, synthetic: ModuleType) -> None:
    record = synthetic.record()
    for row in [*record["rounds"], *record["variants"]]:
        row.pop("flops", None)
    lines = val_lines(typed(record), read_curves(run, typed(record)))
    assert [axis.key for axis in axes_of(lines)] == ["tokens", "steps", "time"]


def test_time_is_in_a_unit_that_fits(run: Path, synthetic: ModuleType) -> None:
    time = axes_of(
        val_lines(
            typed(synthetic.record()),
            read_curves(run, typed(synthetic.record())),
        )
    )[-1]
    assert (time.title, time.end) == ("training time (minutes)", 2.0)


def test_charts_are_what_vega_lite_calls_valid(run: Path, synthetic: ModuleType) -> None:
    record = synthetic.record()
    curves = read_curves(run, typed(record))
    charts = [
        *loss_charts(typed(record), curves),
        training_chart(typed(record), curves),
    ]
    for chart in charts:
        assert chart is not None
        altair.Chart.from_dict(chart.spec, validate=True)


def test_raw_losses_stand_behind_the_smoothed_ones(run: Path, synthetic: ModuleType) -> None:
    chart = training_chart(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )
    assert chart is not None and chart.spec["usermeta"]["raw"]
    raw = [r for layer in chart.spec["layer"] for r in layer["data"]["values"] if r.get("raw")]
    assert len(raw) == 400  # a row for each step of the four trainings
    assert {row["loss"] for row in raw} >= {2.0931, 2.2131}


def test_restarts_are_marked_on_the_axis(run: Path, synthetic: ModuleType) -> None:
    path = run / "variants/inherit/6-layers/metrics.jsonl"
    rows = path.read_text().splitlines()
    place = {"step": 40, "tokens": 400_000, "elapsed_s": 24.0, "event": "continued"}
    rows.insert(41, json.dumps(place))
    path.write_text("\n".join(rows))
    chart = loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )[0]
    marks = [r for layer in chart.spec["layer"] for r in layer["data"]["values"]]
    marks = [row for row in marks if row.get("label") == "continued here"]
    assert [(row["tokens"], row["steps"]) for row in marks] == [(1_400_000, 140)]
    assert "continued from a checkpoint" in chart.caption


def test_a_training_without_steps_has_no_charts_of_them(run: Path, synthetic: ModuleType) -> None:
    for path in run.glob("variants/*/*/metrics.jsonl"):
        path.write_text(path.read_text().splitlines()[0] + "\n")
    curves = read_curves(run, typed(synthetic.record()))
    curves = [curve for curve in curves if not curve.course.losses]
    assert training_chart(typed(synthetic.record()), curves) is None
    assert speed_chart(typed(synthetic.record()), curves) is None


def test_spikes_passes_and_steps_out_of_order_are_counted(tmp_path: Path) -> None:
    row = {"step": 1, "tokens": 10, "epoch": 1.5, "loss": 9.0, "spike": 7.1, "elapsed_s": 1.0}
    rows = [row, row | {"step": 2, "tokens": 5}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_metrics(tmp_path / "m.jsonl")
    assert (found.health.spikes, found.health.epochs) == (2, 1.5)
    assert list(found.course.tokens) == [10.0]


def test_a_huge_file_is_read_in_part_and_says_so(
    tmp_path: Path, synthetic: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.reporting.metrics_file._READ_WHOLE", 10_000)
    rows = synthetic.metrics(1_000_000, 5.0, 2.0, steps=200).replace('"val_loss": null, ', "")
    (tmp_path / "m.jsonl").write_text(rows)
    found = read_metrics(tmp_path / "m.jsonl")
    assert len(found.points) == 11  # no validation is passed over
    assert len(found.course.steps) < 100
    assert "is read" in found.problems[0]


def test_tokens_to_reach_a_loss_count_all_rounds_and_are_never_extrapolated(
    run: Path, synthetic: ModuleType
) -> None:
    table = reach_table(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )
    assert table.headers[2:5] == ["inherit (target)", "scratch", "equal-compute"]
    by_level = {row[0]: row[1:] for row in table.rows}
    assert by_level["the reference loss"] == [
        "2.100",
        "1.9M",
        "not reached",
        "not reached",
        "30M",
    ]
    assert by_level["scratch"][1:3] == ["300K", "1M"]
    assert "not reached" not in table.csv()


def test_utilization_is_shown_where_it_was_measured(run: Path, synthetic: ModuleType) -> None:
    curves = read_curves(run, typed(synthetic.record()))
    assert speed_table(curves).rows[0] == [
        *("inherit, round 1, 4 layers", "12,000", "1.4 × 10¹¹", "—", "900 MB")
    ]
    curves[0].health.median_mfu = 0.41
    assert speed_table(curves).rows[0][3] == "41%"


def test_a_run_that_has_not_ended_says_what_each_training_has_left(
    run: Path, synthetic: ModuleType
) -> None:
    record = synthetic.record(result=None, variants=[], status="running")
    assert (
        trainings_in_progress(
            typed(synthetic.record()),
            read_curves(run, typed(synthetic.record())),
        )
        == []
    )
    del record["rounds"][1]
    path = run / "variants/inherit/6-layers/metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:51]))
    now = trainings_in_progress(typed(record), read_curves(run, typed(record)))[0]
    assert (now.label, now.share) == ("inherit, round 2, 6 layers", 0.5)
    assert now.lines[0] == "500K of 1M tokens (50%)"
    assert now.lines[2].endswith("(reference 2.100, +0.079)")
    assert now.lines[3] == "12,000 tokens/s, 42 s left"
