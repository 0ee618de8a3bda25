"""Arithmetic on ranges, against sets of bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inheritune.model_files.download.partial_file import (
    bridged,
    byte_count,
    merged,
    pieces,
    subtracted,
)

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def covered(ranges):
    return {byte for start, end in ranges for byte in range(start, end)}


def assert_in_order(ranges):
    assert all(start < end for start, end in ranges)
    assert all(a[1] < b[0] for a, b in pairwise(ranges))


@given(RANGES)
def test_merging_keeps_every_byte_once(ranges):
    result = merged(ranges)
    assert_in_order(result)
    assert covered(result) == covered(ranges)
    assert byte_count(result) == len(covered(ranges))


@given(RANGES, RANGES)
def test_subtraction_agrees_with_sets(ranges, taken):
    result = subtracted(ranges, taken)
    assert_in_order(result)
    assert covered(result) == covered(ranges) - covered(taken)


@given(RANGES, st.integers(0, 30), st.integers(0, 20))
def test_bridges_stay_within_their_budget(ranges, budget, widest):
    before = merged(ranges)
    result = bridged(before, budget, widest)
    assert_in_order(result)
    added = covered(result) - covered(before)
    assert covered(before) <= covered(result)
    assert len(added) <= budget
    left = [b[0] - a[1] for a, b in pairwise(result)]
    assert all(gap > min(widest, budget - len(added)) for gap in left)


@given(RANGES, st.integers(1, 20))
def test_pieces_cover_the_ranges(ranges, size):
    result = pieces(merged(ranges), size)
    assert merged(result) == merged(ranges)
    assert all(0 < end - start <= size for start, end in result)
    assert sum(end - start for start, end in result) == byte_count(merged(ranges))
