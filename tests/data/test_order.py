import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from inheritune.data.order import ORDER_VERSION, sample_ids


def test_order_of_version_1_is_the_golden_one():
    first = [592, 371, 43, 259, 138, 232, 986, 347, 882, 384, 365, 702, 91, 828, 647, 433]
    assert ORDER_VERSION == 1
    assert sample_ids(0, 16, 1000, 0, 0).tolist() == first
    assert sample_ids(0, 4, 1000, 0, 1).tolist() == [135, 158, 914, 157]
    large = [2419694, 6272498, 5546179, 9081419]
    assert sample_ids(0, 4, 24_414_062, 1234, 3).tolist() == large


@pytest.mark.parametrize("num_samples", [*range(1, 40), 255, 256, 257, 4095, 4096, 4097])
def test_every_sample_comes_exactly_once_in_an_epoch(num_samples):
    ids = sample_ids(0, num_samples, num_samples, 7, 2)
    assert ids.dtype == np.uint64
    assert sorted(ids.tolist()) == list(range(num_samples))


@settings(max_examples=50, deadline=None)
@given(
    num_samples=st.integers(1, 5000),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
    data=st.data(),
)
def test_a_part_of_the_order_equals_that_part_of_the_whole(num_samples, seed, epoch, data):
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    whole = sample_ids(0, num_samples, num_samples, seed, epoch)
    assert len(set(whole.tolist())) == num_samples and int(whole.max()) < num_samples
    assert np.array_equal(sample_ids(start, stop, num_samples, seed, epoch), whole[start:stop])


def test_positions_outside_the_epoch_are_refused():
    with pytest.raises(ValueError, match="epoch of 10"):
        sample_ids(0, 11, 10, 0, 0)
