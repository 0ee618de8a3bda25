"""Every fault of the catalogue has a test, and every marker names a fault of the catalogue."""

import ast
import re
from pathlib import Path

from faults.catalogue import FAULTS, GROUPS

FOLDER = Path(__file__).parent
TABLE = FOLDER.parents[1] / "docs" / "reference" / "faults.md"


def marked_ids() -> set[str]:
    """The ids in all `@pytest.mark.fault(...)` of this directory."""
    ids: set[str] = set()
    for path in FOLDER.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                ids |= {str(ast.literal_eval(argument)) for argument in node.args}
    return ids


def test_every_fault_has_a_test_and_every_marker_names_a_fault():
    assert marked_ids() == set(FAULTS)


def test_every_fault_belongs_to_a_group():
    assert {re.sub(r"\d+", "", name) for name in FAULTS} == set(GROUPS)


def test_the_table_in_the_documentation_names_every_fault():
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.*?) \| (.*?) \|", TABLE.read_text("utf-8"), re.M)
    assert {name: (fault, expected) for name, fault, expected in rows} == FAULTS
