"""Give each model of a run one colour and one mark, the same in every figure, table and page."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from inheritune.run_record.record import RunRecord
from inheritune.run_record.trainings import TrainedModel

_GLYPHS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "cross": "✚",
    "triangle-up": "▲",
    "triangle-down": "▼",
    "triangle-right": "▶",
}
MUTED = "#8a9099"  # a variant that is not named


@dataclass(frozen=True)
class Style:
    """Colour, dash and mark of a model, so that colour alone never tells models apart."""

    color: str
    dash: list[int]
    shape: str
    muted: bool = False  # drawn in grey and without its name until a reader chooses it

    @property
    def glyph(self) -> str:
        """The mark as a character, for text and tables."""
        return _GLYPHS[self.shape]


# Middle tones: at least 3.5:1 against the page in light and in dark.
TARGET = Style("#3a7bd5", [1, 0], "circle")
REFERENCE = Style("#7b8088", [6, 3], "diamond")
SCRATCH = Style("#c4661a", [7, 4], "square")
BEST_OTHER = Style("#9760d0", [9, 3, 2, 3], "triangle-up")
OTHERS = [
    SCRATCH,
    BEST_OTHER,
    Style("#2c8f6a", [4, 2], "cross"),
    Style("#c2497f", [12, 4], "triangle-down"),
    Style("#8a7a1f", [3, 5], "triangle-right"),
]


def styles_of(record: RunRecord, names: Iterable[str]) -> dict[str, Style]:
    """Map the names of variants to their styles.

    Reference, target, the scratch control and the best other variant have their own colours. All
    others are muted, and their own colours wait for a reader who chooses them.
    """
    styles = {"reference": REFERENCE, record.target_name: TARGET}
    losses = {row.name: row.val_loss for row in _by_loss(record)}
    known = [name for name in losses if name is not None]
    rest = [name for name in dict.fromkeys([*known, *names]) if name not in styles]
    fresh = [row.name for row in _by_loss(record) if row.is_scratch and row.name in rest]
    scratch = next((name for name in (record.scratch.name, *fresh, *rest[:1]) if name in rest), "")
    if scratch:
        styles[scratch] = SCRATCH
        rest.remove(scratch)
    for index, name in enumerate(rest):
        style = _distinct(index + 1)
        styles[name] = style if index == 0 else replace(style, muted=True)
    return styles


def _by_loss(record: RunRecord) -> list[TrainedModel]:
    return sorted(
        (row for row in record.variants if row.val_loss is not None),
        key=lambda row: row.val_loss or 0.0,
    )


def _distinct(index: int) -> Style:
    """Return the style of the control with this index; the first 25 all differ."""
    turn, place = divmod(index, len(OTHERS))
    style = OTHERS[place]
    if not turn:
        return style
    other = OTHERS[(place + turn) % len(OTHERS)]
    return Style(style.color, other.dash, other.shape)
