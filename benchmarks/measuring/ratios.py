"""Ratios measured in turns: what moved since the committed ones, and the page about them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measuring.table import head, row

_NOISE = 1.1  # a ratio moved if all its rounds lie that far beyond all of the other's


@dataclass(frozen=True)
class Case:
    """One ratio.

    Attributes:
        key: Its name in the committed table.
        title: What is divided by what.
        round: Measures both once, in turn.
        goal: That the ratio is to reach; None: none was set.
        at_most: Whether lower is better.
        remark: What a reader of the figure must know.
    """

    key: str
    title: str
    round: Callable[[], float]
    goal: float | None = None
    at_most: bool = True
    remark: str = ""

    def measure(self, rounds: int) -> dict[str, Any]:
        """Measure it, after one round that is not counted."""
        self.round()
        ratios = [self.round() for _ in range(rounds)]
        return {
            "key": self.key,
            "title": self.title,
            "median": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
            "goal": self.goal,
            "at_most": self.at_most,
            "remark": self.remark,
        }


def verdict(measured: Mapping[str, Any]) -> str:
    """Whether a ratio reaches its goal."""
    goal, median = measured["goal"], measured["median"]
    if goal is None:
        return "–"
    reached = median <= goal if measured["at_most"] else median >= goal
    return "met" if reached else "missed"


def movement(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """What became of a ratio since it was committed."""
    if before is None:
        return "new"
    higher = now["least"] > _NOISE * before["most"]
    lower = now["most"] < before["least"] / _NOISE
    if not (higher or lower):
        return "as before"
    return "better" if lower == now["at_most"] else "WORSE"


def page(table: Mapping[str, Any]) -> str:
    """Write docs/benchmarks.md, with misses."""
    rows: Sequence[Mapping[str, Any]] = table["rows"]
    missed = sum(verdict(each) == "missed" for each in rows)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench-quick ARGS=--write`. A figure is the ratio of two things measured",
        "in turn in one process: median (least–most) of rounds. Whole programs beside peers are",
        "measured by the other scripts in `benchmarks/`; [the log](log.md) has their figures.",
        "",
        f"{table['date']}, {table['machine']}, {table['software']}; {table['note']}",
        "",
        f"{table['limits']}.",
        "",
        f"{len(rows)} ratios, {missed} of {sum(r['goal'] is not None for r in rows)} goals missed.",
        "",
        head(["ratio", "measured", "goal", "", "remark"]),
    ]
    for each in rows:
        sign = "≤" if each["at_most"] else "≥"
        goal = "–" if each["goal"] is None else f"{sign} {each['goal']:g}"
        spread = f"{each['median']:.2f} ({each['least']:.2f}–{each['most']:.2f})"
        lines.append(row([each["title"], spread, goal, verdict(each), each["remark"]]))
    return "\n".join(lines) + "\n"
