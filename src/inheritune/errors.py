"""Define every error that a user can meet, with its exit code; make text fit into a message."""

import re
from collections.abc import Sequence

NOT_MATCHED_EXIT_CODE = 6  # an outcome, not an error: `run` spent its rounds, results are complete


class InherituneError(Exception):
    """An error that says what happened, with the value, and then the way out.

    Args:
        message: One sentence, lower case, naming file, key or value.
        hint: One sentence that says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class RecipeError(InherituneError):
    """The recipe or the command line asks for something that cannot be."""

    exit_code = 2


class SourceError(InherituneError):
    """A model directory is missing, broken or unsafe."""

    exit_code = 3


class NoWeightsError(SourceError):
    """A model directory holds no weights in any known format."""


class UnsupportedModelError(SourceError):
    """A model directory is sound, but not one that layers can be taken from."""


class DataError(InherituneError):
    """Text or tokens are missing, broken or too few."""

    exit_code = 3


class CheckpointError(InherituneError):
    """A saved training state is missing, broken or belongs to another run."""

    exit_code = 3


class MachineError(InherituneError):
    """The machine lacks something: disk, device, version, network, lock."""

    exit_code = 4


class MissingExtraError(MachineError):
    """An optional package is not installed."""


class DivergedError(InherituneError):
    """The loss or its gradient stopped being finite."""

    exit_code = 5


class Interrupted(InherituneError):
    """A signal asked to stop; everything is saved and the run can be continued."""

    exit_code = 75


def escape(text: object, limit: int = 80) -> str:
    """Make a value fit into a one-line message: escape control characters, cut it short."""
    plain = str(text)[: limit + 1]
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in plain
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def listed(names: Sequence[str], most: int = 5) -> str:
    """List names for a message, the first few of many; empty where there is none."""
    shown = ", ".join(escape(name, 60) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def sentence(text: str) -> str:
    """End a text with a full stop, unless it ends a sentence already."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


# What a terminal acts on: control characters but tab and line feed, marks that turn the direction
# of writing, and halves of surrogate pairs, which no stream can encode.
_ACTED_ON = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Escape what a terminal would act on; line feeds and tabs stay."""
    return _ACTED_ON.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


_NUMBER = re.compile(r"^\[(Errno|WinError) -?\d+\] ")  # as Python begins an OSError


def reason_of(error: BaseException) -> str:
    """Word an error of the system, such as ``no such file or directory``, without its number."""
    text = getattr(error, "strerror", None) or _NUMBER.sub("", str(error))
    return str(text or type(error).__name__).lower()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, or the error's type."""
    text = _NUMBER.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # "Class validation error for validator 'validate_architecture':", and then why.
    lines = [line for line in lines if not line.endswith(":")] or lines
    first = lines[0] if lines else ""
    # The text of a KeyError is the key alone.
    if not first or isinstance(error, LookupError | AssertionError | NotImplementedError):
        first = f"{type(error).__name__}: {first}".removesuffix(": ")
    return escape(first, 200)
