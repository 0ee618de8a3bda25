"""How a step tells what it is doing; who listens decides how that looks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Listener", "Progress", "silent"]


@dataclass(frozen=True)
class Progress:
    """One moment of one step.

    Attributes:
        task: What is running, such as ``"inherit, 4 layers"``; a new text starts a new bar.
        done: How much is done, in ``unit``.
        total: How much there is, in ``unit``; 0 when unknown.
        unit: ``"tokens"``, ``"documents"``, ``"bytes"``, ``"windows"``.
        facts: Figures worth a place beside the bar, such as ``{"loss": "3.201"}``.
        message: A line to keep, for an event rather than a movement; usually empty.
    """

    task: str
    done: int = 0
    total: int = 0
    unit: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Listen to nothing."""
