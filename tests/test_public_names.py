"""The names that are public: those of `inheritune.api`, pinned in golden/public_names.json.

After a change that is meant: ``python tests/test_public_names.py --write``
"""

import inspect
import json
import sys
from pathlib import Path

import pytest

import inheritune

GOLDEN = Path(__file__).with_name("golden") / "public_names.json"


def public_names() -> dict[str, list[str]]:
    """Each name; of a function its parameters."""
    return {name: _parts(getattr(inheritune, name)) for name in sorted(inheritune.__all__)}


def _parts(value: object) -> list[str]:
    return list(inspect.signature(value).parameters) if inspect.isfunction(value) else []


def test_public_names_are_those_of_the_golden_file() -> None:
    pinned = json.loads(GOLDEN.read_text("utf-8"))
    assert public_names() == pinned, "if this is meant: python tests/test_public_names.py --write"


@pytest.mark.parametrize("name", inheritune.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    text = inspect.getdoc(getattr(inheritune, name)) or ""
    # A dataclass without one describes itself by its signature; that is no description.
    assert text and not text.startswith(f"{name}(")


@pytest.mark.parametrize(
    "name", [n for n in inheritune.__all__ if inspect.isfunction(getattr(inheritune, n))]
)
def test_every_parameter_of_a_public_function_is_described(name: str) -> None:
    function = getattr(inheritune, name)
    described = (inspect.getdoc(function) or "").partition("Args:")[2]
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in described or f"**{parameter}: " in described


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    GOLDEN.write_text(json.dumps(public_names(), indent=2) + "\n", "utf-8")
