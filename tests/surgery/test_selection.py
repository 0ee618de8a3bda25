"""The grammar of choosing layers, the same for the command and the recipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import InherituneError, RecipeError
from inheritune.recipe.variants import Variant
from inheritune.surgery.selection import (
    FORMS,
    check_selection,
    choose_layers,
    describe_selection,
    stated_count,
)
from inheritune.surgery.ways import WAYS, LayerFacts

FACTS = LayerFacts(10)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("3", (0, 1, 2)),
        ("first:3", (0, 1, 2)),
        ("last:3", (7, 8, 9)),
        ("middle:3", (3, 4, 5)),
        ("middle:4", (3, 4, 5, 6)),
        ("first+last:2+1", (0, 1, 9)),
        ("first+last:3", (0, 1, 9)),
        ("first+last:0+2", (8, 9)),
        ("strided:3", (0, 5, 9)),
        ("every:3", (0, 3, 6, 9)),
        ("every:1", tuple(range(10))),
        ("0-2,5,9", (0, 1, 2, 5, 9)),
        ("4-4", (4,)),
        ("0,9", (0, 9)),
        (" 10 ", tuple(range(10))),
    ],
)
def test_each_form_of_a_selection_means_what_its_name_says(text, kept):
    assert choose_layers(text, FACTS) == kept
    assert choose_layers(text, FACTS, len(kept)) == kept
    assert stated_count(text, 10) == len(kept)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (None, (0, 1, 2)),
        ("first", (0, 1, 2)),
        ("last", (7, 8, 9)),
        ("middle", (3, 4, 5)),
        ("first+last", (0, 1, 9)),
        ("strided", (0, 5, 9)),
        ("3", (0, 1, 2)),
        ("1,4,6", (1, 4, 6)),
    ],
)
def test_a_way_takes_its_number_from_elsewhere(text, kept):
    assert choose_layers(text, FACTS, 3) == kept


def test_numbers_and_indices_are_selections_too():
    assert choose_layers(3, FACTS) == (0, 1, 2)
    assert choose_layers([1, 4], FACTS) == (1, 4)
    assert choose_layers(range(2), FACTS) == (0, 1)
    for layers in (0, 11, -1, 10**12, [], [3, 3], [10], [-1]):
        with pytest.raises(RecipeError):
            choose_layers(layers, FACTS)


def test_a_selection_without_a_number_states_no_count():
    assert [stated_count(text, 10) for text in (None, "first", "lazy")] == [None] * 3
    assert stated_count("lazy:4", 10) == 4


def test_another_number_than_the_one_stated_elsewhere_is_refused():
    with pytest.raises(RecipeError, match="'last:3' keeps 3 layers, not 2"):
        choose_layers("last:3", FACTS, 2)


def test_every_way_stands_in_the_one_text_for_help_and_recipe():
    description = " ".join(str(Variant.model_fields["select"].description).split())
    assert all(name in FORMS for name in WAYS)
    assert FORMS in description


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "cannot keep 0"),
        ("11", "Choose between 1 and 10"),
        ("-3", "does not say"),
        ("1.5", "does not say"),
        ("", "does not say"),
        ("first", "does not say"),
        ("half:3", "does not say"),
        ("first+last:6+5", "cannot keep 11"),
        ("first+last:0+0", "cannot keep 0"),
        ("every:0", "cannot keep 0"),
        ("every", "does not say"),
        ("last:1+1", "two numbers"),
        ("lazy:3", "lazy needs a measurement"),
        ("first+last:1", "needs two layers"),
        ("0,0", "stands twice"),
        ("3,1", "comes after layer 3"),
        ("3-1", "backwards"),
        ("0-10", "no layer 10"),
        ("0,999999", "no layer 999999"),
        ("0-999999", "no layer 10"),
        ("12\n\x1b[31m", "does not say"),
    ],
)
def test_a_selection_that_cannot_be_is_refused_with_the_reason(text, said):
    with pytest.raises(RecipeError) as error:
        choose_layers(text, FACTS)
    assert said in str(error.value)
    assert "\x1b" not in str(error.value)


@given(st.text(max_size=30), st.integers(1, 200))
def test_any_text_gives_a_checked_selection_or_our_own_error(text, total):
    try:
        kept = choose_layers(text, LayerFacts(total))
    except InherituneError:
        return
    assert check_selection(kept, total) == kept


@given(st.sets(st.integers(0, 99), min_size=1))
def test_a_described_selection_reads_back_as_itself(layers):
    kept = tuple(sorted(layers))
    text = describe_selection(kept).split(" ", 1)[1].replace(" ", "")
    if len(kept) == 1:
        text = f"{kept[0]}-{kept[0]}"
    assert choose_layers(text, LayerFacts(100)) == kept
