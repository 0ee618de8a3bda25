"""The battery of things that go wrong: its 112 ids, and those that no test shows yet.

A test shows an id by its name: `test_b7_...` in `test_b.py` or in `test_b_more.py` shows B7,
`test_b12_and_b16_...` both.
"""

import re

__all__ = ["IDS", "NOT_BUILT", "ids_of"]

SIZES = {"A": 20, "B": 28, "C": 24, "D": 28, "E": 12}
IDS = [f"{group}{number}" for group, size in SIZES.items() for number in range(1, size + 1)]

# What no test shows yet, and why.
NOT_BUILT = {}


def ids_of(test: str) -> set[str]:
    """The ids in the name of a test."""
    found = re.match(r"test((?:_and)?_[a-e]\d+)+(?=_|$)", test)
    return {i.upper() for i in re.findall(r"[a-e]\d+", found[0])} & set(IDS) if found else set()
