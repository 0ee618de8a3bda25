"""Counts the items of the battery that a run of the tests has shown."""

from faults.battery import IDS, ids_of

LEFT_OUT = set()


def _ids(report):
    return ids_of(report.nodeid.rpartition("::")[2].partition("[")[0])


def pytest_deselected(items):
    """Tests that a marker or an expression leaves out."""
    LEFT_OUT.update(i for item in items for i in _ids(item))


def pytest_terminal_summary(terminalreporter):
    """End with how many items were shown: all their tests ran, none was skipped or failed."""
    stats = terminalreporter.stats
    ran = {i for report in stats.get("passed", []) for i in _ids(report)}
    not_shown = {
        i
        for outcome in ("failed", "error", "skipped", "xfailed", "xpassed")
        for report in stats.get(outcome, [])
        for i in _ids(report)
    }
    terminalreporter.write_line(f"battery: {len(ran - not_shown - LEFT_OUT)}/{len(IDS)}")
