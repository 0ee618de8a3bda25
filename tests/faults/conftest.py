"""Count the faults that a run of the tests has shown, and write their table when asked."""

import importlib.util
import os
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
from faults.catalogue import FAULTS, GROUPS
from faults.every_call.page import section

TABLE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "faults.md"
HERE = Path(__file__).parent
OUTCOMES: dict[str, list[tuple[str, str]]] = defaultdict(list)  # id -> (test, outcome)


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module that builds a run without training."""
    path = Path(__file__).parents[1] / "reporting" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("report_synthetic", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ids_of(item: pytest.Item) -> list[str]:
    """The fault ids in a test's markers."""
    return [str(name) for mark in item.iter_markers("fault") for name in mark.args]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Carry the ids along in the report of a test, which reaches the main process of xdist."""
    for item in items:
        item.user_properties += [("fault", name) for name in ids_of(item)]


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count tests that a marker or an expression leaves out as not run."""
    for item in items:
        for name in ids_of(item):
            OUTCOMES[name].append((item.nodeid, "not run"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of every test of a fault; a failing set-up counts as failed."""
    if report.when == "call" or report.outcome != "passed":
        for key, name in report.user_properties:
            if key == "fault":
                OUTCOMES[name].append((report.nodeid, report.outcome))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with how many faults were shown: all their tests ran and passed."""
    shown = {
        name
        for name, tests in OUTCOMES.items()
        if name in FAULTS and all(outcome == "passed" for _, outcome in tests)
    }
    terminalreporter.write_line(f"faults shown: {len(shown)}/{len(FAULTS)}")
    if os.environ.get("WRITE_FAULTS_TABLE"):
        TABLE.write_text(table(), encoding="utf-8")
        terminalreporter.write_line(f"{TABLE} is written.")


def table() -> str:
    """The page: one row per fault, with the file of its tests and how many passed."""
    lines = [
        "# Faults and what happens",
        "",
        "Written by `make faults`, which injects every fault of this table. *What must happen*",
        "begins with the exit code where the command ends: 2 recipe or command line, 3 model or",
        "data, 4 machine, 5 diverged, 6 not matched, 75 interrupted and resumable.",
    ]
    for group, title in GROUPS.items():
        lines += ["", f"## {title}", ""]
        lines += ["| id | fault | what must happen | tests | passed |", "|---|---|---|---|---|"]
        for name, (fault, expected) in FAULTS.items():
            if name.rstrip("0123456789") == group:
                tests = OUTCOMES[name]
                files = sorted({nodeid.split("::")[0].split("/")[-1] for nodeid, _ in tests})
                passed = sum(outcome == "passed" for _, outcome in tests)
                cells = [name, fault, expected, ", ".join(f"`{file}`" for file in files)]
                lines.append(f"| {' | '.join(cells)} | {passed} of {len(tests)} |")
    return "\n".join(lines) + "\n" + section()
