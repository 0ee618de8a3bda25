import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inheritune.data.sources import Mixture


def test_the_order_of_equal_documents_is_the_golden_one():
    mixture, taken = Mixture([67, 15, 4.5]), [0, 0, 0]
    order = []
    for _ in range(12):
        order.append(mixture.next_source(taken))
        taken[order[-1]] += 100
    assert order == [0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=7),
    seed=st.integers(0, 1000),
)
def test_no_source_is_ahead_of_its_share_by_more_than_a_document(weights, seed):
    chooser, mixture, taken = random.Random(seed), Mixture(weights), [0] * len(weights)
    for _ in range(300):
        taken[mixture.next_source(taken)] += chooser.randint(1, 500)
    for tokens, weight in zip(taken, weights, strict=True):
        assert tokens <= sum(taken) * weight / sum(weights) + 500


@pytest.mark.parametrize("scale", [1, 0.01, 3])
def test_only_the_ratios_of_weights_count(scale):
    for taken in itertools.product(range(5), repeat=3):
        expected = Mixture([2, 4, 1]).next_source(taken)
        assert Mixture([2 * scale, 4 * scale, 1 * scale]).next_source(taken) == expected
