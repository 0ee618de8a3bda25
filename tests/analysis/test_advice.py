"""Lazy groups, and the number of layers that they advise."""

import pytest

from inheritune.analysis.advice import advise, laziest_first, lazy_group
from inheritune.errors import RecipeError
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import LayerFacts

RANKS = {0: 20.0, 1: 9.0, 2: 2.5, 3: 1.0, 4: 1.0}


def test_a_group_is_lazy_by_its_mean():
    assert [lazy_group(RANKS, first, 5) for first in range(5)] == [False, False, True, True, True]
    assert not lazy_group({0: 1.0}, 1, 2)


def test_the_advice_is_the_fewest_layers_whose_rest_is_lazy():
    found = advise(RANKS, 5, safe={1, 2, 3, 4})
    assert (found.paper, found.advice) == (2, 2)
    assert found.reason == "layers 2 to 4 are a lazy group: their mean rank is 1.50"


def test_advice_is_a_safe_cut_point():
    assert advise(RANKS, 5, safe={1, 4}).advice == 4


def test_advice_is_half_of_the_layers_if_none_are_lazy():
    found = advise(dict.fromkeys(range(7), 30.0), 7, safe=set(range(1, 7)))
    assert found.advice == found.paper == 3
    assert found.reason.startswith("no group of last layers is lazy")


def test_layers_without_attention_count_for_nothing():
    assert advise({0: 9.0, 2: 1.0}, 4, safe={1, 2, 3}).advice == 1
    assert advise({0: 9.0}, 4, safe={1, 2, 3}).advice == 2  # no group of nothing


def test_the_laziest_are_kept_in_their_order():
    order = laziest_first(RANKS)
    assert order == (4, 3, 2, 1, 0)
    assert choose_layers("lazy", LayerFacts(5, order), 3) == (2, 3, 4)
    some = LayerFacts(5, laziest_first({0: 1.0, 1: 5.0, 4: 2.0}))
    assert choose_layers("lazy:2", some) == (0, 4)
    with pytest.raises(RecipeError, match="2 have attention"):
        choose_layers("lazy", LayerFacts(5, (1, 3)), 3)


def test_before_the_analysis_the_last_layers_stand_for_the_lazy_ones():
    assert choose_layers("lazy", LayerFacts(5), 2, estimate=True) == (3, 4)
    with pytest.raises(RecipeError, match="lazy needs a measurement"):
        choose_layers("lazy", LayerFacts(5), 2)
