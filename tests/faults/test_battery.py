"""Every item of the battery has a test with its id, or stands among those to come."""

import ast
from pathlib import Path

import pytest
from faults.battery import IDS, NOT_BUILT, ids_of

FOLDER = Path(__file__).parent


def shown(group):
    group_files = [
        *FOLDER.glob(f"test_{group.lower()}.py"),
        *FOLDER.glob(f"test_{group.lower()}_*"),
    ]
    trees = [ast.parse(path.read_text("utf-8")) for path in group_files]
    functions = [n for tree in trees for n in ast.walk(tree) if hasattr(n, "args")]
    names = [getattr(function, "name", "") for function in functions]
    return {i for name in names for i in ids_of(name) if i[0] == group}


def test_the_battery_has_112_items():
    assert len(IDS) == len(set(IDS)) == 112


@pytest.mark.parametrize("group", "ABCDE")
def test_every_item_has_a_test_or_is_said_to_have_none(group):
    assert [i for i in IDS if i[0] == group and (i in NOT_BUILT) == (i in shown(group))] == []


def test_ids_are_read_from_the_names_of_tests():
    assert ids_of("test_b12_config_is_huge") == {"B12"}
    assert ids_of("test_b12_and_b16_what_fills_the_memory") == {"B12", "B16"}
    assert ids_of("test_a1_b") == {"A1"}
    assert ids_of("test_b29_is_none") == set()
    assert ids_of("test_ids") == set()
