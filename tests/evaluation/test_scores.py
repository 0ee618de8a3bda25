from pathlib import Path
from typing import Any

import pytest

from inheritune.errors import DataError
from inheritune.evaluation.scores import Metric, find_score, keep_score, read_result, score_file

KEY = {"model": "abc", "task": "piqa", "version": "1.0", "shots": 0, "limit": None}
RAW: dict[str, Any] = {
    "results": {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1}},
    "n-shot": {"piqa": 0},
    "n-samples": {"piqa": {"original": 1838, "effective": 50}},
    "higher_is_better": {"piqa": {"acc": True}},
}


def test_a_score_is_kept_and_found_again_by_all_that_decides_it(tmp_path: Path) -> None:
    score = read_result(RAW, "piqa", KEY, 1.5, {"device": "cpu"})
    assert score.metrics == {"acc": Metric(0.5, 0.1)}
    assert (score.items, score.items_in_all, score.shots) == (50, 1838, 0)
    assert find_score(tmp_path, KEY) is None
    keep_score(tmp_path, score)
    assert find_score(tmp_path, KEY) == score
    for name in KEY:
        assert find_score(tmp_path, KEY | {name: "other"}) is None


def test_a_group_has_both_means(tmp_path: Path) -> None:
    raw = {
        "results": {
            "mmlu": {"acc,none": 0.35, "acc_stderr,none": 0.1},
            "mmlu_a": {"acc,none": 0.2, "acc_stderr,none": 0.03},
            "mmlu_b": {"acc,none": 0.4, "acc_stderr,none": 0.04},
        },
        "groups": {"mmlu": {"acc,none": 0.35, "acc_stderr,none": 0.1}},
        "n-shot": {"mmlu_a": 5, "mmlu_b": 5},
        "n-samples": {
            "mmlu_a": {"original": 10, "effective": 10},
            "mmlu_b": {"original": 30, "effective": 30},
        },
    }
    score = read_result(raw, "mmlu", KEY, 0.0, {})
    assert score.metrics["acc"] == Metric(0.35, 0.1)
    mean = score.metrics["acc_mean_of_subjects"]
    assert mean.value == pytest.approx(0.3)
    assert mean.se == pytest.approx(0.025)
    assert (score.items, score.shots) == (40, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "N/A", None, True])
def test_e3_what_is_no_finite_number_is_no_value(value: Any) -> None:
    raw = RAW | {"results": {"piqa": {"acc,none": value, "acc_stderr,none": "N/A"}}}
    assert read_result(raw, "piqa", KEY, 0.0, {}).metrics == {"acc": Metric(None, None)}


def test_a_result_without_the_task_has_no_metrics() -> None:
    assert read_result({"results": {}}, "piqa", KEY, 0.0, {}).metrics == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"score": {}}', '{"score": null, "format": 1}'])
def test_a_broken_file_is_named_and_not_overwritten(tmp_path: Path, content: str) -> None:
    path = score_file(tmp_path, KEY)
    path.write_text(content)
    with pytest.raises(DataError, match=r"not valid JSON|no score of ours"):
        find_score(tmp_path, KEY)
    assert path.read_text() == content
