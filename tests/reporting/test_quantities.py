"""Numbers as they are read."""

import pytest

from inheritune.reporting.quantities import (
    MISSING,
    amount,
    data_size,
    duration,
    exact,
    flops,
    loss,
    percent,
    signed,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (950, "950"), (51_583, "51.6K"), (999_950, "1M"), (3_066_099, "3.07M"), (2e9, "2B")],
)
def test_amounts_have_three_digits_and_a_letter(value: float, shown: str) -> None:
    assert amount(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (4.2, "4.2 s"),
        (42, "42 s"),
        (212.4, "3 min 32 s"),
        (240, "4 min"),
        (3600, "60 min"),
        (7500, "2 h 5 min"),
        (270_000, "3.1 days"),
    ],
)
def test_durations_use_units_people_think_in(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_each_quantity_has_its_form() -> None:
    assert flops(5.04e13) == "5.0 × 10¹³"
    assert loss(2.0931) == "2.093"
    assert (signed(0.1127), signed(-0.0073)) == ("+0.113", "−0.007")
    assert [percent(x) for x in (0.93, 0.0667, 0.0004, 0)] == ["93%", "6.7%", "under 0.1%", "0%"]
    assert data_size(25e9) == "25 GB"
    assert exact(51583) == "51,583"


def test_unknown_is_a_dash_everywhere() -> None:
    shows = (amount, data_size, duration, exact, flops, loss, percent, signed)
    assert {show(None) for show in shows} == {MISSING}
