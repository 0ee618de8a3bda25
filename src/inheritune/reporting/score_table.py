"""A table of scores: standard errors, what is bold and what is no better than guessing."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inheritune.reporting.quantities import MISSING
from inheritune.reporting.tables import Table

__all__ = ["BOLD_RULE", "CHANCE_NOTE", "Mark", "ScoreTable", "at_chance", "is_bold", "share_se"]

_BOLD_SHARE = 0.9
BOLD_RULE = (
    "Bold, by the authors' rule: at least 90 % of the reference, or better than at least two "
    "published baselines; of losses and perplexities, at most the reference / 0.9. It alone is no "
    "claim: see the marks."
)
CHANCE_NOTE = (
    "†: not more than two standard errors above guessing or the best constant answer (TruthfulQA: "
    "above untrained models)."
)


@dataclass(frozen=True)
class Mark:
    """What stands beside a value.

    Attributes:
        se: Standard error, in the value's unit.
        bold: See `is_bold`.
        chance: See `at_chance`.
    """

    se: float | None = None
    bold: bool = False
    chance: bool = False


def is_bold(
    score: float, reference: float | None, baselines: Sequence[float], lower: bool = False
) -> bool:
    """The authors' rule, which gives their bold set 10 times of 10.

    Args:
        score: Of the model in question.
        reference: Of what it was inherited from, measured alike; None: not measured.
        baselines: Published scores of other models.
        lower: Whether lower is better.
    """
    if lower:
        near = reference is not None and score <= reference / _BOLD_SHARE
        return near or sum(score < other for other in baselines) >= 2
    near = reference is not None and score >= _BOLD_SHARE * reference
    return near or sum(score > other for other in baselines) >= 2


def at_chance(score: float, se: float | None, floor: float | None) -> bool:
    """Whether a score is not more than two standard errors above what takes no knowledge."""
    return floor is not None and floor > 0 and score <= floor + 2 * (se or 0.0)


def share_se(percent: float, items: int | None) -> float | None:
    """Standard error of a printed percentage of so many questions, in percent."""
    if not items or not 0 <= percent <= 100:
        return None
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / items)


@dataclass(frozen=True)
class ScoreTable(Table):
    """A table some of whose cells carry a mark.

    Attributes:
        marks: By row and column.
    """

    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)

    @property
    def rows(self) -> list[list[str]]:
        """The values as they are read, with standard error and dagger."""
        return [
            [self._with_mark(r, c, text) for c, text in enumerate(row)]
            for r, row in enumerate(super().rows)
        ]

    def _with_mark(self, row: int, column: int, text: str) -> str:
        mark = self.marks.get((row, column))
        if mark is None or text == MISSING:
            return text
        if mark.se is not None:
            text += f" ± {mark.se:.3g}"
        return f"{text} †" if mark.chance else text

    def is_bold(self, row: int, column: int) -> bool:
        """Whether a cell is set in bold."""
        mark = self.marks.get((row, column))
        return mark is not None and mark.bold

    def markdown(self) -> str:
        """The table as Markdown, bold where the rule says so."""
        plain = super().markdown().splitlines()
        for r in range(len(self.values)):
            cells = plain[2 + r].removeprefix("| ").removesuffix(" |").split(" | ")
            cells = [f"**{t}**" if self.is_bold(r, c) else t for c, t in enumerate(cells)]
            plain[2 + r] = "| " + " | ".join(cells) + " |"
        return "\n".join(plain) + "\n"

    def csv(self) -> str:
        """The values in full, each with its standard error in a column of its own."""
        marked = sorted({column for _, column in self.marks})
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        titles = [f"{c.title} ({c.unit})" if c.unit else c.title for c in self.columns]
        writer.writerow([*titles, *(f"{titles[c]} SE" for c in marked)])
        for r, row in enumerate(self.values):
            errors = [self.marks.get((r, c), Mark()).se for c in marked]
            writer.writerow("" if value is None else value for value in [*row, *errors])
        return out.getvalue()
