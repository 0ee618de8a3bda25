from types import SimpleNamespace
from typing import Any

import pytest

from inheritune.accounting import gap_closed


def trial(name: str, losses: list[float], layers: int = 4, tokens: int = 100) -> Any:
    mean = sum(losses) / len(losses)
    known = {"layers": layers, "tokens": tokens, "first_sample": 0, "start": "fresh"}
    known |= {"made_of": "", "distill": None, "seed": 0}
    return SimpleNamespace(name=name, windows=losses, val_loss=mean, **known)


def outcome(target: Any, *controls: Any) -> Any:
    benchmark = SimpleNamespace(windows=[2.0, 2.2, 2.4])
    known: dict[str, Any] = {"benchmark": benchmark, "repeats": []}
    return SimpleNamespace(target=target, controls=list(controls), **known)


TARGET = trial("inherit", [2.1, 2.3, 2.5])
SCRATCH = trial("scratch", [3.0, 3.2, 3.4])


def test_the_gap_is_closed_by_the_share_of_it_that_is_gone() -> None:
    assert gap_closed(outcome(TARGET, SCRATCH)) == pytest.approx(0.9)


def test_with_several_seeds_the_gap_is_that_of_the_means_over_seeds() -> None:
    several = outcome(TARGET, SCRATCH)
    several.repeats = [trial("inherit", [2.3, 2.5, 2.7]), trial("scratch", [3.2, 3.4, 3.6])]
    assert gap_closed(several) == pytest.approx((3.3 - 2.4) / (3.3 - 2.2))


def test_better_than_the_reference_is_above_one() -> None:
    better = trial("inherit", [1.9, 2.1, 2.3])
    assert gap_closed(outcome(better, SCRATCH)) == pytest.approx(1.1)


def test_a_target_that_went_on_from_smaller_ones_saw_more_tokens_than_the_control() -> None:
    kept = trial("inherit", TARGET.windows)
    kept.first_sample = 80
    assert gap_closed(outcome(kept, SCRATCH)) is None


@pytest.mark.parametrize("changes", [{"layers": 6}, {"tokens": 200}])
def test_it_takes_a_control_of_the_targets_size_and_tokens(changes: dict[str, int]) -> None:
    assert gap_closed(outcome(TARGET, trial("scratch", SCRATCH.windows, **changes))) is None


@pytest.mark.parametrize(
    "changes",
    [{"start": "inherit"}, {"made_of": "fresh weights; a rate"}, {"distill": {"alpha": 0.6}}],
)
def test_it_takes_plain_scratch_among_controls_of_that_size(changes: dict[str, Any]) -> None:
    other = trial("other", [2.5, 2.7, 2.9])
    vars(other).update(changes)
    assert gap_closed(outcome(TARGET, other, SCRATCH)) == pytest.approx(0.9)
    assert gap_closed(outcome(TARGET, other)) is None


def test_a_gap_within_three_standard_errors_is_not_divided_by() -> None:
    assert gap_closed(outcome(TARGET, trial("scratch", [2.9, 2.0, 2.5]))) is None


def test_one_window_has_no_standard_error_and_so_no_gap() -> None:
    one = outcome(trial("inherit", [2.1]), trial("scratch", [3.0]))
    one.benchmark = SimpleNamespace(windows=[2.0])
    assert gap_closed(one) is None
