"""Report what a step is doing; the listener decides how it is shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """The state of a step at one moment.

    Attributes:
        task: Name of the step, such as ``"inherit, 4 layers"``; a new name starts a new bar.
        done: Amount done, in ``unit``.
        total: Amount in all, in ``unit``; 0 when unknown.
        unit: ``"tokens"``, ``"documents"``, ``"bytes"``, ``"windows"``.
        facts: Figures worth a place beside the bar, such as ``{"loss": "3.201"}``.
        message: A line to keep, for an event; usually empty.
    """

    task: str
    done: int = 0
    total: int = 0
    unit: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore progress: the listener where nobody listens."""
