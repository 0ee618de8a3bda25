"""Keep the figures of a whole pass, and set them into the page of faults."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["SUMMARY", "publish", "section"]

SUMMARY = Path(__file__).with_name("figures.json")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "faults.md"
TITLE = "## Every call that changes a file"
WORDS = {
    "kill": "the process is killed within the call; a write is left half done",
    "EIO": "the call fails once, as on a broken disk",
    "ENOSPC": "the call fails, with every later one that needs room",
}


def publish(calls: Sequence[str], results: Sequence[dict[str, Any]], stride: int) -> None:
    """Write the figures of a pass, and the page's section.

    Args:
        calls: Names of the calls of the undisturbed run, in order.
        results: ``fault``, exit ``code`` of the disturbed start and ``problems`` of each case.
        stride: Of how many calls one was disturbed.
    """
    faults: dict[str, Counter[str]] = {}
    for result in results:
        counts = faults.setdefault(result["fault"], Counter())
        counts["injected"] += 1
        counts[{-9: "killed", 4: "exit code 4"}.get(result["code"], "carried on")] += 1
        counts["held"] += not result["problems"]
    figures = {"calls": Counter(calls), "stride": stride, "faults": faults}
    SUMMARY.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.partition(f"\n{TITLE}")[0] + section(), encoding="utf-8")


def section() -> str:
    """The end of the page; empty where no pass has been published."""
    if not SUMMARY.exists():
        return ""
    figures = json.loads(SUMMARY.read_text(encoding="utf-8"))
    calls = figures["calls"]
    kinds = ", ".join(f"{count} {_plain(name)}" for name, count in Counter(calls).most_common())
    which = "each of them" if figures["stride"] == 1 else f"every {figures['stride']}th of them"
    lines = [
        "",
        TITLE,
        "",
        "Written by `make faults-deep`: a tiny run with two rounds, tasks, analysis, samples and a",
        f"report changes its files by {sum(calls.values())} calls: {kinds}.",
        f"It is disturbed at {which}, then the same command continues it.",
        "",
        "*Held* means: the exit code is right, there is a message and no traceback, and the",
        "continued run has the files, rows, losses, weights, tokens and FLOPs of the one that was",
        "left alone, and nothing besides.",
        "",
        "| fault | injected | exit code 4 | killed | carried on | held |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in figures["faults"].items():
        cells = [counts.get(key, 0) for key in ("injected", "exit code 4", "killed", "carried on")]
        row = " | ".join(map(str, [*cells, counts["held"]]))
        lines.append(f"| {name}: {WORDS[name]} | {row} |")
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    return re.sub(r"(at)?(64)?$", "", name) if name != "sendfile64" else "sendfile"
