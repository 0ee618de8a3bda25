"""Say what a first run is asked for, and keep its recipe for the next start."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from inheritune.errors import RecipeError, escape
from inheritune.recipe.filling import METHODS
from inheritune.recipe.load import RecipeFile, read_recipe, read_sets
from inheritune.recipe.values import amount_of_tokens, name_of_model, safe_name
from inheritune.system.files import write_bytes

_MOST_MINUTES = 525_600  # a year
_USUAL_RUNS = Path("runs")  # where `inheritune run` looks unless --runs says otherwise


@dataclass(frozen=True)
class FirstRun:
    """What a first run is asked for.

    Attributes:
        model: Hub id, model directory, or ``embedded:demo``.
        text: Files, folders or globs, as ``data.source`` takes them.
        layers: Layers of the target, in the grammar of `inherit`; None: half, growing once.
        tokens: Training tokens of each round, such as ``"20M"``; None: as ``minutes`` says.
        minutes: Time for all rounds on this machine; None, without tokens: 15.
        name: Name of the run; None: that of the model.
        method: Preset of `METHODS`; None: ``best``.
        sets: Overrides of any key, in the form of ``--set``.
        processes: Number of processes of the run; it decides ``train.micro_batch`` only.
    """

    model: str
    text: tuple[str, ...]
    layers: str | None = None
    tokens: str | None = None
    minutes: float | None = None
    name: str | None = None
    sets: tuple[str, ...] = ()
    processes: int = 1
    method: str | None = None

    def __post_init__(self) -> None:
        if not self.text:
            raise RecipeError("no text is named.", "Name files or folders of text: --text PATH")
        if self.tokens is not None and self.minutes is not None:
            raise RecipeError(
                "--tokens and --minutes both say how long to train.", "Give one of them."
            )
        if self.tokens is not None:
            amount_of_tokens(self.tokens)
        if self.minutes is not None and not 0 < self.minutes <= _MOST_MINUTES:
            raise RecipeError(
                f"--minutes is {self.minutes:g}.",
                f"Give more than 0 and at most {_MOST_MINUTES:,}, such as 15.",
            )
        if self.method is not None and self.method not in METHODS:
            raise RecipeError(
                f"there is no method {escape(repr(self.method), 60)}.",
                f"Choose {' or '.join(METHODS)}.",
            )
        if safe_name(self.run_name) != self.run_name:
            raise RecipeError(
                f"{escape(self.run_name)} is no name of a run.",
                f"Use letters, digits, '-', '_' and '.': --name {safe_name(self.run_name)}",
            )

    @property
    def command(self) -> str:
        """The command line that asks for this; it tells one request from another."""
        words = ["inheritune", "run", self.model]
        words += [word for path in self.text for word in ("--text", path)]
        minutes = None if self.minutes is None else f"{self.minutes:g}"
        options = {"layers": self.layers, "tokens": self.tokens, "minutes": minutes}
        for option, value in (options | {"name": self.name, "method": self.method}).items():
            words += [] if value is None else [f"--{option}", value]
        words += [word for text in self.sets for word in ("--set", text)]
        return escape(shlex.join(words), 10_000)

    @property
    def run_name(self) -> str:
        """Name of the run: the one given, or that of the model."""
        name = read_sets(self.sets).value.get("name", self.name)
        return name_of_model(self.model) if name is None else str(name)


def continuing(recipe: Path, runs: Path) -> str:
    """Return the command that continues the run of a recipe among these runs."""
    words = ["inheritune", "run", str(recipe)]
    return shlex.join(words if runs == _USUAL_RUNS else [*words, "--runs", str(runs)])


def keep_recipe(
    request: FirstRun, directory: Path, runs: Path, make: Callable[[], RecipeFile]
) -> RecipeFile:
    """Write a new recipe to ``NAME.yaml``, or read the one that the same request wrote before.

    Args:
        directory: Receives ``NAME.yaml``.
        runs: Directory of runs; one of this name must be of the same request.
        make: Fills in the recipe; called only where none was written before.

    Raises:
        RecipeError: The file, or the run of this name, is of something else.
    """
    path = directory / f"{request.run_name}.yaml"
    copy = runs / request.run_name / "recipe.yaml"
    for place in (path, copy):
        if not place.exists():
            continue
        file = read_recipe(place)
        if f"\n# {request.command}\n" not in file.text:
            subject = f"the run {place.parent}" if place == copy else str(place)
            raise RecipeError(
                f"{escape(subject, 160)} is there already, and was not made by this command.",
                f"Continue it: {continuing(place, runs)}; or choose another name: --name NAME",
            )
        if place == copy:
            write_bytes(path, file.text.encode())
        return replace(file, path=path)
    file = make()
    write_bytes(path, file.text.encode())
    return replace(file, path=path)
