"""The public names of every module, pinned in golden/public_names.json.

After a change that is meant: ``python tests/test_public_names.py --write``
"""

import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import inheritune

GOLDEN = Path(__file__).with_name("golden") / "public_names.json"
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(inheritune.__path__, "inheritune.")
    if not found.ispkg and found.name != "inheritune.__main__"
)


def public_names() -> dict[str, list[str]]:
    return {name: sorted(importlib.import_module(name).__all__) for name in MODULES}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_every_module_says_what_is_public(module):
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def test_public_functions_and_classes_have_docstrings(module):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            text = inspect.getdoc(value) or ""
            # A dataclass without one describes itself by its signature; that is no description.
            assert text and not text.startswith(f"{name}("), f"{name} has no docstring"


def test_public_names_are_those_of_the_golden_file():
    pinned = json.loads(GOLDEN.read_text("utf-8"))
    assert public_names() == pinned, "if this is meant: python tests/test_public_names.py --write"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(public_names(), indent=2) + "\n", "utf-8")
