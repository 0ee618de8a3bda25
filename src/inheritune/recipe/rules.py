"""Choose what a recipe leaves open, by stated rules: sequences, batches, rate, validation, tokens.

Each rule is a function of numbers alone: of the model, the text, and the speed of the machine.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.errors import DataError, RecipeError
from inheritune.recipe.values import parse_amount

LONGEST_SEQUENCE = 1024
LEAST_SEQUENCES = 8  # of training and of validation; sequences are halved to reach it
_SHORTEST_SEQUENCE = 8  # of train.seq_len
_MOST_BATCH_TOKENS = 393_216  # of the paper's GPT-2 medium
_LEAST_STEPS = 200
_WARMUP_SHARE = 20  # one token in 20
_MICRO_BATCH = 8
_MIN_RATE_SHARE = 10  # the rate falls to a tenth, as in the low-data runs of the paper

_WINDOWS = 100  # to validate on; the standard error of a difference is then a tenth of its spread
# Sequences are not made shorter than this for the sake of more windows.
_SHORTEST_FOR_WINDOWS = 128
_LEAST_DOCUMENTS = 16
_MOST_HELD_OUT, _MOST_HELD_OUT_OF_LITTLE = 0.1, 0.5

EVALUATIONS = 5  # on the way of a training
_MEASUREMENTS = EVALUATIONS + 2  # and of its end: as published, and in fp32
_EVALUATION_SHARE = 1 / 3  # a forward pass without the backward pass
_MOST_VALIDATION_SHARE = 0.2  # of the time of a run that is given in minutes
_LEAST_STEPS_IN_TIME = 20


@dataclass(frozen=True)
class TextFacts:
    """What is known of a text before it is prepared.

    Attributes:
        documents: A pair for each document that was read, in order: the smallest val_fraction that
            holds it out, in [0, 1), or None if none does; and its tokens with BOS and EOS.
        tokens: Tokens of the whole text, estimated if not all of it was read; None: unknown.
        is_whole: Whether all of it was read.
    """

    documents: Sequence[tuple[float | None, int]]
    tokens: int | None
    is_whole: bool

    def held_out(self, share: float) -> tuple[float, float]:
        """Return the tokens of training and validation, expected if not all of it was read."""
        if self.is_whole:
            places = ((place, count) for place, count in self.documents if place is not None)
            held_out = sum(count for place, count in places if place < share)
            return sum(count for _, count in self.documents) - held_out, held_out
        total = math.inf if self.tokens is None else self.tokens
        return (1 - share) * total, share * total

    @property
    def least_held_out(self) -> float:
        """Tokens to hold out at least, so that no split by hash leaves nothing.

        Where not all was read, 16 documents are expected: none is held out once in 10^7 times.
        """
        total = sum(count for _, count in self.documents)
        return 0 if self.is_whole else _LEAST_DOCUMENTS * total / max(1, len(self.documents))


@dataclass(frozen=True)
class Split:
    """Length of the sequences, and the share of the documents that is held out."""

    seq_len: int
    val_fraction: float
    windows: int | None  # of validation, expected; None: unknown
    train_tokens: int | None  # of one pass over the text, expected; None: unknown


def choose_split(
    text: TextFacts,
    longest: int,
    windows: int = _WINDOWS,
    *,
    seq_len: int | None = None,
    val_fraction: float | None = None,
) -> Split:
    """Choose sequences as long as possible, and hold out as little as possible.

    First so that at most 10 % of the documents give ``windows`` windows, with sequences of 128
    tokens at least. Of a short text 8 windows will do, with shorter sequences and up to half of it.

    Args:
        longest: Longest sequence, such as the positions of the model.
        windows: Windows to validate on.
        seq_len: Length that is given already, as is ``val_fraction``; None: to be chosen.

    Raises:
        DataError: The text is too short for 8 windows of 8 tokens.
    """
    enough = min(longest, _SHORTEST_FOR_WINDOWS)
    is_given = seq_len is not None or val_fraction is not None
    passes = [
        (windows, enough, longest, _MOST_HELD_OUT),
        (min(windows, LEAST_SEQUENCES), _SHORTEST_SEQUENCE, enough, _MOST_HELD_OUT_OF_LITTLE),
        *[(1, _SHORTEST_SEQUENCE, longest, _MOST_HELD_OUT_OF_LITTLE)] * is_given,
    ]
    for least, shortest, first, most_share in passes:
        lengths = _halved(first, shortest) if seq_len is None else [seq_len]
        for length in lengths:
            shares = _shares(most_share) if val_fraction is None else [val_fraction]
            for share in shares:
                train, val = text.held_out(share)
                is_enough = val - 1 >= max(least * length, text.least_held_out)
                if is_enough and train - 1 >= min(least, LEAST_SEQUENCES) * length:
                    known = math.isfinite(train)
                    num_windows = int(val - 1) // length if known else None
                    return Split(length, share, num_windows, int(train) if known else None)
    total = sum(count for _, count in text.documents)
    number = len(text.documents)
    raise DataError(
        f"the text is too short: {total:,} tokens in {number:,} "
        f"document{'s' * (number != 1)}, of which some must be held out.",
        "Add text, as several files or rows of .jsonl.",
    )


def _halved(longest: int, shortest: int) -> Iterator[int]:
    while longest >= shortest:
        yield longest
        longest //= 2


def _shares(most: float) -> Iterator[float]:
    """Yield 1e-6, 2e-6, 5e-6, 1e-5, ... up to ``most``."""
    for exponent in range(-6, 0):
        for digit in (1, 2, 5):
            if (share := float(f"{digit}e{exponent}")) <= most:
                yield share


def learning_rate(params: int) -> float:
    """Return the peak learning rate for layers of a reference with so many parameters.

    rate = 3e-4 sqrt(355M / params), within [1e-4, 2e-3], to two digits.

    Source: the peaks of Sanyal et al., arXiv 2404.08634, for GPT-2 medium, large and XL (355M, 774M
    and 1.56B parameters) are 3e-4, 2e-4 and 1.5e-4; the formula gives 3e-4, 2e-4 and 1.4e-4. The
    lower bound is the rate of Xia et al., Sheared LLaMA, arXiv 2310.06694, for 1.3B and 2.7B; the
    upper one the best of those tried on the demo's reference (docs/log.md).
    """
    rate = 3e-4 * math.sqrt(355e6 / params)
    return float(f"{min(2e-3, max(1e-4, rate)):.1e}")


def train_defaults(
    given: Mapping[str, Any], tokens: int, seq_len: int, processes: int = 1
) -> dict[str, int]:
    """Choose batches and warm-up for a training of so many tokens.

    A step has at most 393,216 tokens, and fewer so that there are 200 steps: a power of two of
    sequences, which divides among 2, 4, 8 processes, and one for each process at least. The warm-up
    takes 5 % of the tokens.

    Args:
        given: Keys of the recipe's section `train` that are given already; a value that is no
            number is left for the recipe to refuse.
    """
    max_sequences = max(1, min(_MOST_BATCH_TOKENS, tokens // _LEAST_STEPS) // seq_len)
    micro_batch = number(given, "micro_batch")
    sequences = (micro_batch or 1) * _power_of_two(max_sequences // (micro_batch or 1))
    sequences = max(sequences, (micro_batch or 1) * processes)
    batch_tokens = number(given, "batch_tokens") or sequences * seq_len
    sequences_per_process = max(1, batch_tokens // seq_len // processes)
    return {
        "batch_tokens": batch_tokens,
        "micro_batch": micro_batch or math.gcd(sequences_per_process, _MICRO_BATCH),
        "warmup_tokens": tokens // _WARMUP_SHARE,
    }


def first_train_section(
    given: Mapping[str, Any], tokens: int, seq_len: int, params: int, processes: int = 1
) -> dict[str, Any]:
    """Choose the section `train` of a first run; arguments are those of the rules above."""
    rate = learning_rate(params)
    peak = given.get("learning_rate", rate)
    peak = peak if isinstance(peak, float) and peak > 0 else rate
    return {
        "tokens": tokens,
        "seq_len": seq_len,
        **train_defaults(given, tokens, seq_len, processes),
        "learning_rate": rate,
        "min_learning_rate": float(f"{peak / _MIN_RATE_SHARE:.2g}"),
        "eval_every": max(1, tokens // EVALUATIONS),
    }


def windows_in(seconds: float, rounds: Sequence[float], reference: float, seq_len: int) -> int:
    """Return how many windows to validate on, so that it takes a fifth of a time at most.

    Args:
        seconds: Time for all rounds.
        rounds: Seconds per training token, of each round.
        reference: The same of the reference, which is measured once.

    Returns:
        8 to 100.
    """
    per_window = seq_len * _validation_cost(rounds, reference)
    fitting = int(_MOST_VALIDATION_SHARE * seconds / per_window)
    return min(_WINDOWS, max(LEAST_SEQUENCES, fitting))


def tokens_in(seconds: float, rounds: Sequence[float], reference: float, split: Split) -> int:
    """Return the training tokens of each round, so that all rounds take a time together.

    tokens = (seconds - validation) / sum of the seconds per token, rounded down to two digits.
    Arguments are those of `windows_in`.

    Raises:
        RecipeError: The time is over before 20 sequences are trained on in each round.
    """
    windows = split.windows or _WINDOWS
    validation = windows * split.seq_len * _validation_cost(rounds, reference)
    tokens = (seconds - validation) / sum(rounds)
    least = _LEAST_STEPS_IN_TIME * split.seq_len
    if tokens < least:
        needed = math.ceil((least * sum(rounds) + validation) / 60)
        raise RecipeError(
            f"--minutes {seconds / 60:g} is too short here for {_LEAST_STEPS_IN_TIME} sequences of "
            f"{split.seq_len} tokens in each of {len(rounds)} trainings.",
            f"Give --minutes {needed}, or shorter sequences: --set train.seq_len=...",
        )
    unit: int = 10 ** (int(math.log10(tokens)) - 1)
    return int(tokens // unit) * unit


def _validation_cost(rounds: Sequence[float], reference: float) -> float:
    """Seconds that all validations of a run take per validation token."""
    return (_MEASUREMENTS * sum(rounds) + reference) * _EVALUATION_SHARE


def number(given: Mapping[str, Any], key: str) -> int | None:
    """Return a whole number above 0, or an amount of tokens; None if it is missing or no number."""
    value = parse_amount(given.get(key))
    return value if type(value) is int and value > 0 else None


def _power_of_two(at_most: int) -> int:
    return 1 << max(0, at_most.bit_length() - 1)
