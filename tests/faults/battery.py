"""The battery of things that go wrong: its 112 ids, and those that no test shows yet.

A test shows an id by its name: `test_b7_...` in `test_b.py` or in `test_b_more.py` shows B7,
`test_b12_and_b16_...` both.
"""

import re

__all__ = ["IDS", "NOT_BUILT", "ids_of"]

SIZES = {"A": 20, "B": 28, "C": 24, "D": 28, "E": 12}
IDS = [f"{group}{number}" for group, size in SIZES.items() for number in range(1, size + 1)]

# Groups of commands that do not exist yet, and single items that wait for something.
NOT_BUILT = {
    **dict.fromkeys(["E1", "E2", "E3", "E4"], "evaluation"),
    **dict.fromkeys(["E5", "E6", "E7"], "the report, under these ids"),
    "E11": "watching",
}


def ids_of(test: str) -> set[str]:
    """The ids in the name of a test."""
    found = re.match(r"test((?:_and)?_[a-e]\d+)+(?=_|$)", test)
    return {i.upper() for i in re.findall(r"[a-e]\d+", found[0])} & set(IDS) if found else set()
