from typing import Any

import pytest

from inheritune.errors import DataError, RecipeError
from inheritune.recipe.rules import (
    Split,
    TextFacts,
    choose_split,
    first_train_section,
    learning_rate,
    tokens_in,
    train_defaults,
    windows_in,
)


def whole(documents: int, tokens: int) -> TextFacts:
    """A text whose documents lie evenly between 0 and 1 in the split."""
    counts = [(number / documents, tokens) for number in range(documents)]
    return TextFacts(counts, documents * tokens, is_whole=True)


@pytest.mark.parametrize(
    ("params", "rate"),
    [
        (355_000_000, 3e-4),  # GPT-2 medium: as in the paper
        (774_000_000, 2e-4),  # large: as in the paper
        (1_558_000_000, 1.4e-4),  # XL: 1.5e-4 in the paper
        (135_000_000, 4.9e-4),
        (7_000_000_000, 1e-4),
        (2_747_040, 2e-3),  # the demo's reference: as in the demo
    ],
)
def test_the_learning_rate_falls_with_the_root_of_the_parameters(params: int, rate: float) -> None:
    assert learning_rate(params) == rate


@pytest.mark.parametrize(
    ("text", "longest", "split"),
    [
        # 100 windows of 1,024 tokens would be more than a tenth of the text; of 512 they are not.
        (whole(10_000, 100), 1024, Split(512, 0.1, 195, 900_000)),
        # Not even of 128: so eight windows of 128 will do.
        (whole(1000, 100), 1024, Split(128, 0.02, 15, 98_000)),
        # The model has 32 positions.
        (whole(1000, 100), 32, Split(32, 0.05, 156, 95_000)),
        # A short text: eight windows of 8 tokens, and as many sequences to train on.
        (whole(20, 10), 1024, Split(8, 0.5, 12, 100)),
        # Of a long text the beginning was read: the rest is taken to be like it.
        (TextFacts([(0.5, 1000)], 10**9, False), 1024, Split(1024, 2e-4, 195, 999_800_000)),
        # Large documents: sixteen of them are held out.
        (TextFacts([(0.5, 50_000)], 10**9, False), 1024, Split(1024, 1e-3, 976, 999_000_000)),
        # A Hub dataset, whose size is not known.
        (TextFacts([(0.5, 1000)], None, False), 1024, Split(1024, 1e-6, None, None)),
    ],
)
def test_sequences_are_long_and_little_is_held_out(
    text: TextFacts, longest: int, split: Split
) -> None:
    assert choose_split(text, longest) == split


def test_what_is_given_stays() -> None:
    text = whole(1000, 100)
    assert choose_split(text, 1024, seq_len=64).seq_len == 64
    assert choose_split(text, 1024, val_fraction=0.5) == Split(256, 0.5, 195, 50_000)
    assert choose_split(text, 1024, seq_len=900, val_fraction=0.01) == Split(900, 0.01, 1, 99_000)
    assert choose_split(text, 1024, 20, seq_len=64) == Split(64, 0.02, 31, 98_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (whole(1, 5000), "5,000 tokens in 1 document,"),
        (whole(2, 8), "16 tokens in 2 documents,"),
        (TextFacts([], 0, True), "0 tokens in 0 documents,"),
        (TextFacts([(None, 5000)] * 9, 45_000, True), "45,000 tokens in 9 documents,"),
    ],
)
def test_a_text_that_cannot_be_split_is_refused(text: TextFacts, said: str) -> None:
    with pytest.raises(DataError, match=said):
        choose_split(text, 1024)


@pytest.mark.parametrize(
    ("given", "tokens", "processes", "chosen"),
    [
        ({}, 20_000_000, 1, (65_536, 8, 1_000_000)),
        ({}, 20_000_000, 16, (65_536, 4, 1_000_000)),
        ({}, 10**10, 1, (262_144, 8, 500_000_000)),
        ({}, 40_000, 1, (1024, 1, 2000)),
        ({}, 40_000, 3, (3072, 1, 2000)),
        ({"micro_batch": 2}, 40_000, 2, (4096, 2, 2000)),
        ({"micro_batch": 3}, 20_000_000, 1, (98_304, 3, 1_000_000)),
        ({"batch_tokens": "16K"}, 20_000_000, 1, (16_000, 1, 1_000_000)),
        ({"batch_tokens": "many"}, 40_000, 1, (1024, 1, 2000)),
    ],
)
def test_batches_leave_two_hundred_steps(
    given: dict[str, Any], tokens: int, processes: int, chosen: tuple[int, int, int]
) -> None:
    assert tuple(train_defaults(given, tokens, 1024, processes).values()) == chosen


def test_the_section_train_of_a_first_run_follows_what_is_given() -> None:
    section = first_train_section({}, 20_000_000, 1024, 135_000_000)
    assert section == {
        "tokens": 20_000_000,
        "seq_len": 1024,
        "batch_tokens": 65_536,
        "micro_batch": 8,
        "warmup_tokens": 1_000_000,
        "learning_rate": 4.9e-4,
        "min_learning_rate": 4.9e-5,
        "eval_every": 4_000_000,
    }
    given = {"learning_rate": 1e-5}
    assert first_train_section(given, 1, 8, 10**9)["min_learning_rate"] == 1e-6


# Seconds per token of two rounds and of the reference. A token of validation costs
# (7 * 0.0025 + 0.002) / 3 = 0.0065 s in the whole run, a window of 128 tokens 0.832 s.
ROUNDS, REFERENCE = [1e-3, 1.5e-3], 2e-3


@pytest.mark.parametrize(("seconds", "windows"), [(900, 100), (60, 14), (10, 8)])
def test_validation_takes_a_fifth_of_the_time_at_most(seconds: float, windows: int) -> None:
    assert windows_in(seconds, ROUNDS, REFERENCE, 128) == windows


def test_tokens_fill_the_time_that_validation_leaves() -> None:
    split = Split(128, 0.1, 100, 10**6)
    # (900 - 83.2) / 0.0025 = 326,720
    assert tokens_in(900, ROUNDS, REFERENCE, split) == 320_000
    assert tokens_in(9e6, ROUNDS, REFERENCE, split) == 3_500_000_000


def test_too_little_time_names_the_minutes_that_are_enough() -> None:
    split = Split(1024, 0.1, 8, 10**6)
    # 20 * 1,024 * 0.0025 + 8 * 1,024 * 0.0065 = 104.4 s
    with pytest.raises(RecipeError, match=r"--minutes 1 is too short") as caught:
        tokens_in(60, ROUNDS, REFERENCE, split)
    assert caught.value.hint.startswith("Give --minutes 2,")
    assert tokens_in(120, ROUNDS, REFERENCE, split) == 26_000
