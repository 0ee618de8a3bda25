"""Metrics read from files that may be torn, foreign or absent."""

import json
from operator import itemgetter
from pathlib import Path
from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

from inheritune.reporting.curves import read_curves, thin
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


def test_rounds_stand_one_after_another(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    curves = read_curves(run, typed(synthetic.record()))
    assert [(c.label, c.offset) for c in curves] == [
        ("inherit, round 1, 4 layers", 0),
        ("inherit, round 2, 6 layers", 1_000_000),
        ("scratch, 6 layers", 0),
        ("equal-compute, 6 layers", 0),
    ]
    assert curves[1].points[0] == (0, 3.905)
    assert curves[1].points[-1] == (1_000_000, 2.0931)
    assert all(len(c.points) == 11 for c in curves)


def test_a_round_that_has_not_ended_is_found_on_disk(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.record(result=None, variants=[])
    del record["rounds"][1]
    curves = read_curves(synthetic.build_run(tmp_path, record), typed(record))
    assert [(c.label, c.offset) for c in curves[:2]] == [
        ("inherit, round 1, 4 layers", 0),
        ("inherit, round 2, 6 layers", 1_000_000),
    ]


def test_torn_and_foreign_lines_are_left_out_and_counted(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    run = synthetic.build_run(tmp_path)
    metrics = run / "variants/inherit/4-layers/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30] + b"\n\xff\xfe\n[1]\n")
    first = read_curves(run, typed(synthetic.record()))[0]
    assert first.points[-1][0] == 900_000
    assert first.problems == [
        "inherit, round 1, 4 layers: 3 unreadable lines of metrics.jsonl are ignored"
    ]


def test_health_counts_restarts_and_nonfinite_steps(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    metrics = run / "variants/inherit/4-layers/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[50] |= {"loss": None, "nonfinite": "nan", "grad_norm": None}
    rows[60]["grad_norm"] = 7.5
    rows.insert(40, {"step": 40, "elapsed_s": 30.0, "event": "continued"})
    metrics.write_text("\n".join(map(json.dumps, rows)))
    health = read_curves(run, typed(synthetic.record()))[0].health
    assert (health.restarts, health.nonfinite, health.highest_grad_norm) == (1, 1, 7.5)
    assert (health.steps, health.validations) == (100, 11)


def test_a_recorded_path_never_leads_out_of_the_run(synthetic: ModuleType, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "metrics.jsonl").write_text(synthetic.metrics(10, 5.0, 4.0))
    record = synthetic.record()
    for path in ("../outside", str(outside), "a\0b"):
        record["rounds"][0]["path"] = path
        assert (
            read_curves(synthetic.build_run(tmp_path / str(len(path))), typed(record))[0].points
            == []
        )


@given(
    st.lists(st.floats(-10, 10), min_size=0, max_size=300),
    st.integers(4, 60),
)
def test_thinning_keeps_ends_extremes_and_order(values: list[float], limit: int) -> None:
    points = list(enumerate(values))
    kept = thin(points, limit, itemgetter(1))
    assert len(kept) <= max(limit, 0) or len(points) <= limit
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    if points:
        assert kept[0] == points[0]
        assert kept[-1] == points[-1]
        assert min(v for _, v in kept) == min(values)
        assert max(v for _, v in kept) == max(values)
