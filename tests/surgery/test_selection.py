"""Which layers a text asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import InherituneError, RecipeError
from inheritune.surgery.selection import check_selection, describe_selection, select_layers


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("3", (0, 1, 2)),
        ("first:3", (0, 1, 2)),
        ("last:3", (7, 8, 9)),
        ("middle:3", (3, 4, 5)),
        ("middle:4", (3, 4, 5, 6)),
        ("first+last:2+1", (0, 1, 9)),
        ("every:3", (0, 3, 6, 9)),
        ("every:1", tuple(range(10))),
        ("0-2,5,9", (0, 1, 2, 5, 9)),
        ("4-4", (4,)),
        ("0,9", (0, 9)),
        (" 10 ", tuple(range(10))),
    ],
)
def test_each_form_of_a_selection_means_what_its_name_says(text, kept):
    assert select_layers(text, 10) == kept


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
        select_layers(text, 10)
    assert said in str(error.value)
    assert "\x1b" not in str(error.value)


@given(st.text(max_size=30), st.integers(1, 200))
def test_any_text_gives_a_checked_selection_or_our_own_error(text, total):
    try:
        kept = select_layers(text, total)
    except InherituneError:
        return
    assert check_selection(kept, total) == kept


@given(st.sets(st.integers(0, 99), min_size=1))
def test_a_described_selection_reads_back_as_itself(layers):
    kept = tuple(sorted(layers))
    text = describe_selection(kept).split(" ", 1)[1].replace(" ", "")
    if len(kept) == 1:
        text = f"{kept[0]}-{kept[0]}"
    assert select_layers(text, 100) == kept
