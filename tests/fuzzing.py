"""Damage files and records for the tests that throw them at readers.

FUZZ is how many times as many examples are tried as in `make test`: 3 in `make test-all`, always
the same ones, and 30 in `make fuzz`, which draws other ones at every start.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["JSON", "MORE", "changed", "damaged", "fuzz"]

MORE = int(os.environ.get("FUZZ", "1"))
T = TypeVar("T", bound=Callable[..., object])

# What a stranger may put where a number, a text or a list belongs.
ODD = st.sampled_from([None, True, -1, 0, 1, 2**31, 2**64, 10**400]) | st.sampled_from(
    [0.5, 1e308, float("nan"), float("inf"), "", "0", "a" * 3000, "\0", "\ud800", [], {}, [[]]]
)
JSON = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def fuzz(examples: int) -> Callable[[T], T]:
    """Mark a test that throws damage at a reader, and say how many examples `make test` tries."""

    def mark(test: T) -> T:
        quiet = settings(
            max_examples=examples * MORE, deadline=None, suppress_health_check=list(HealthCheck)
        )
        return pytest.mark.fuzz(quiet(test))

    return mark


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Some bytes of a sound file replaced, left out, repeated or cut off."""
    content = sound
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(content)))
        last = min(len(content), first + draw(st.integers(0, 40)))
        middle = draw(
            st.binary(max_size=9)
            | st.just(content[first:last] * 2)
            | st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(4), bytes(8), b"\x7f" + bytes(7)])
        )
        content = content[:first] + middle + content[last:]
        if draw(st.integers(0, 9)) == 0:
            content = content[: draw(st.integers(0, len(content)))]
    return content


@st.composite
def changed(draw: st.DrawFn, sound: Any) -> Any:
    """A JSON value of which some parts are others, are missing, or stand in another place."""
    value = sound
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


def _change(draw: st.DrawFn, value: Any) -> Any:
    """Walk down a random way and change what is at its end."""
    keys: list[Any] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    key = draw(st.sampled_from(keys))
    copy = dict(value) if isinstance(value, dict) else list(value)
    if draw(st.integers(0, 7)) == 0:
        del copy[key]
    else:
        copy[key] = _change(draw, value[key])
    return copy
