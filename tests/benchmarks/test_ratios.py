import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this distribution", allow_module_level=True)


@pytest.fixture
def ratios(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from measuring import ratios

    return ratios


def measured(least, most, goal=None, at_most=True):
    return {"least": least, "median": (least + most) / 2, "most": most} | {
        "goal": goal,
        "at_most": at_most,
    }


def test_a_ratio_is_measured_in_rounds_after_one_that_is_not_counted(ratios):
    rounds = iter([9.0, 1.5, 1.1, 1.3])
    row = ratios.Case("key", "one / other", lambda: next(rounds), 1.25).measure(3)
    assert (row["least"], row["median"], row["most"]) == (1.1, 1.3, 1.5)
    assert ratios.verdict(row) == "missed"


@pytest.mark.parametrize(
    ("least", "most", "at_most", "expected"),
    [
        (1.0, 1.2, True, "as before"),
        (1.25, 1.6, True, "as before"),  # not all rounds lie beyond those of before
        (1.4, 1.6, True, "WORSE"),
        (1.4, 1.6, False, "better"),
        (0.8, 0.9, True, "better"),
        (0.8, 0.9, False, "WORSE"),
    ],
)
def test_what_moved_lies_with_all_its_rounds_beyond_those_of_before(
    ratios, least, most, at_most, expected
):
    now = measured(least, most, at_most=at_most)
    assert ratios.movement(now, measured(1.0, 1.2, at_most=at_most)) == expected
    assert ratios.movement(now, None) == "new"


@pytest.mark.parametrize(
    ("goal", "at_most", "expected"),
    [(None, True, "–"), (1.1, True, "met"), (1.0, True, "missed"), (1.2, False, "missed")],
)
def test_a_goal_is_met_or_missed_by_the_median(ratios, goal, at_most, expected):
    assert ratios.verdict(measured(1.0, 1.2, goal, at_most)) == expected


def test_the_page_is_that_of_the_committed_table(ratios):
    table = json.loads((BENCHMARKS / "quick.json").read_text("utf-8"))
    assert ratios.page(table) == (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_limits_of_a_machine_are_measured_on_the_shapes_given(ratios, tmp_path):
    from measuring import roofline
    from training.shapes import SHAPES

    shape = SHAPES["tiny"]
    weights = roofline.layer_weights(shape)
    assert weights == [(32, 32)] * 4 + [(128, 32)] * 2 + [(320, 32)]
    limits = roofline.roofline(weights, 8, tmp_path)
    assert min(limits.fp32, limits.bf16, limits.copy, limits.disk) > 0
    assert "products of these shapes" in limits.line()
    assert not [*tmp_path.iterdir()]
