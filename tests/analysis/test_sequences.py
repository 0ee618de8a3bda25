"""Which sequences models are looked at with."""

import numpy as np
import pytest

from inheritune.analysis.sequences import draw_sequences, sequences_for
from inheritune.errors import RecipeError


def test_windows_do_not_overlap_and_are_the_same_again(tiny_tokens):
    drawn = draw_sequences(tiny_tokens.val, 5, 16, None, "val")
    again = draw_sequences(tiny_tokens.val, 5, 16, None, "val")
    assert drawn.ids.shape == (5, 16) and np.array_equal(drawn.ids, again.ids)
    windows = tiny_tokens.val.num_ids // 16
    starts = np.sort(np.random.default_rng(0).permutation(windows)[:5]) * 16
    assert [row.tolist() for row in drawn.ids] == [
        tiny_tokens.val.ids(start, start + 16).tolist() for start in starts
    ]
    assert drawn.as_json()["bos"] is False


def test_a_bos_takes_a_place_of_each_sequence():
    drawn = draw_sequences(np.arange(100, 160), 10, 16, 7, "a text")
    assert drawn.ids.tolist() == [[7, *range(s, s + 15)] for s in (100, 115, 130, 145)]
    assert drawn.as_json() == {
        "sequences": 4, "asked": 10, "tokens_per_sequence": 16, "seed": 0, "bos": True,
        "source": "a text",
    }  # fmt: skip


@pytest.mark.parametrize(("count", "length"), [(0, 16), (-1, 16), (5, 1), (5, 0)])
def test_no_sequences_or_sequences_without_a_past_are_refused(count, length):
    with pytest.raises(RecipeError, match="cannot be analysed"):
        sequences_for([], count, length)


def test_a_text_that_is_too_short_gives_no_sequences():
    assert draw_sequences(np.arange(5), 3, 16, None, "a text").ids.shape == (0, 16)
