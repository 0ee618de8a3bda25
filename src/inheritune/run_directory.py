"""Open the directory of a run, locate its files, read and update its record, lock it.

Anybody may have made the directory. `Run.open` and `Run.hold` look it over before anything in it is
read or written, and refuse one that leads elsewhere.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from inheritune.errors import DataError, RecipeError, escape
from inheritune.run_record.record import FORMAT, RunRecord
from inheritune.system.files import (
    cannot_write,
    refuse_removed,
    sweep_directory,
    watch_for_removal,
    write_json,
)
from inheritune.system.locks import holder_has_ended, locked
from inheritune.system.reading import directories_below
from inheritune.system.strict_json import read_json

_TRAINING = re.compile(r"(?P<layers>[0-9]{1,9})-layers(-seed-(?P<seed>[0-9]{1,19}))?")


@dataclass(frozen=True)
class TrainingFolder:
    """The directory of one training of a variant."""

    path: Path
    variant: str
    layers: int
    seed: int | None  # seed of a training that repeats another; None: the first of its variant


class Run:
    """A run on disk, and the paths of its files. It can be moved: no file inside names its root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe_file = root / "recipe.yaml"  # the recipe, byte for byte
        self.record_file = root / "run.json"  # see `RunRecord`
        self.log_file = root / "log.txt"  # every event, with its time
        self.tokens = root / "tokens"  # token shards and their manifest
        self.reference = root / "reference"  # model directory of a reference that is trained here
        # The language model inside of a reference that also reads images, where only that is used.
        self.text_reference = self.reference / "text"
        # The model directory that `demo --real` makes of a GGUF file, and the text that it writes.
        self.converted = self.reference / "converted"
        self.text = root / "text.jsonl"
        # The reference's predictions for the training tokens, where a distillation keeps them.
        self.logits = self.reference / "logits"
        self.pin = root / "reference.json"  # commit of a Hub reference that the run is pinned to
        self.benchmark = root / "benchmark.json"  # the reference's val_loss, window by window
        self.analysis = root / "analysis.json"  # attention and importance of layers
        self.selection = root / "selection.json"  # scores by which layers were chosen
        self.tournament = root / "tournament.json"  # short trainings by which layers were chosen
        self.repairs = root / "repairs"  # fits that trainings share, until all are complete
        self.family = root / "family.json"  # sizes that layers put back give, with no training
        self.gains = root / "gains.json"  # size, speed and fidelity of reference and target
        self.samples = root / "samples.json"  # text generated after the recipe's prompts
        self.target = root / "target"  # the final model directory
        self.report = root / "report"  # the report page, its tables and figures

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open a run to read it or to write its report.

        Raises:
            DataError: Something in it leads out of it.
        """
        run = cls(root)
        if os.path.lexists(run.record_file) or run.has_traces():  # else it may be a home directory
            for _ in directories_below(root, run.is_of_tracker):
                pass
        return run

    @classmethod
    @contextmanager
    def hold(cls, root: Path, wait: Callable[[], bool] = lambda: False) -> Iterator[Self]:
        """Make a run, or continue the one that is there, as its only writer.

        What killed writers left is removed, at the start and at the end.

        Args:
            wait: Called several times a second while another process writes to the run; true: go
                on waiting. It may raise.

        Raises:
            RecipeError: ``root`` is the root of the file system, the home directory, the current
                directory or a file, or it holds something else; nothing is touched.
            DataError: Something in the run leads out of it.
            MachineError: Another process writes to this run, or the system refuses to make the
                directory.
        """
        run = cls(root)
        run._make_root()
        with run.lock(wait):
            run._sweep()
            if not run.record_file.exists():
                write_json(run.record_file, {"format": FORMAT})  # marks the directory as a run
            with watch_for_removal(root):
                yield run
                # Children of a killed writer, such as torch's compiler, outlive it by seconds: what
                # they held at the start is free now.
                run._sweep()

    def _sweep(self) -> None:
        """Remove what killed writers left anywhere in the run."""
        for directory in directories_below(self.root, self.is_of_tracker):
            sweep_directory(directory)

    @classmethod
    def create(cls, root: Path) -> Self:
        """Make a run, or continue the one that is there; raises as `hold`."""
        with cls.hold(root) as run:
            return run

    def variant(self, name: str, layers: int, seed: int | None = None) -> Path:
        """Directory of one training; ``seed`` is that of one that repeats another, else None."""
        repeat = "" if seed is None else f"-seed-{seed}"
        return self.root / "variants" / name / f"{layers}-layers{repeat}"

    def patched(self, training: Path, layers: int) -> Path:
        """Directory of a size that layers put back give to the model of a training."""
        return self.root / "patched" / training.parent.name / f"{layers}-from-{training.name}"

    @property
    def own_files(self) -> set[str]:
        """Names of the files that a start writes before any result."""
        files = (self.record_file, self.recipe_file, self.log_file, self.pin)
        return {file.name for file in files} | {".lock", ".lock.json"}

    def has_traces(self) -> bool:
        """Whether files beside run.json show that the directory is a run."""
        files = (self.recipe_file, self.tokens, self.benchmark, self.pin, self.root / "variants")
        return any(path.exists() for path in files)

    def trainings(self) -> list[TrainingFolder]:
        """The trainings of variants that have a directory, finished or not, by path."""
        folders = map(self.training_at, sorted(self.root.glob("variants/*/*-layers*")))
        return [folder for folder in folders if folder is not None]

    @staticmethod
    def training_at(path: Path) -> TrainingFolder | None:
        """Tell the training by its directory, as `variant` names it; None for another one."""
        name = _TRAINING.fullmatch(path.name)
        if name is None:
            return None
        seed = None if name["seed"] is None else int(name["seed"])
        return TrainingFolder(path, path.parent.name, int(name["layers"]), seed)

    def is_of_tracker(self, directory: Path) -> bool:
        """Whether wandb keeps a directory, beside a training: it links to that library's cache."""
        training = directory.parent
        is_training = training in (self.root, self.reference) or (
            self.training_at(training) is not None
            and training.parent.parent == self.root / "variants"
        )
        return directory.name == "wandb" and is_training

    def inside(self, path: str) -> Path:
        """Resolve a path that run.json gives relative to the run.

        Anybody may have written the record, so a path that leads out of the run is replaced by
        one that does not exist.
        """
        folder = self.root / path if path and "\0" not in path else self.root / "missing"
        inside = folder.resolve().is_relative_to(self.root.resolve())
        return folder if inside else self.root / "missing"

    def lock(self, wait: Callable[[], bool] = lambda: False) -> AbstractContextManager[None]:
        """Hold the run's lock, which the system frees when the process ends, however it ends.

        Raises:
            MachineError: Another process writes to this run; the message names it.
        """
        busy = f"another process is writing to {escape(self.root)}"
        return locked(self.root / ".lock", busy, wait=wait)

    def is_abandoned(self) -> bool:
        """Whether the process that worked on the run was killed and could not record it."""
        return holder_has_ended(self.root / ".lock")

    def read(self) -> dict[str, Any]:
        """Read run.json as JSON values.

        Raises:
            DataError: The file is missing, broken, not of a run, or of a newer inheritune.
        """
        if not os.path.lexists(self.record_file):
            raise DataError(
                f"{escape(self.root, 300)} is no run: it has no run.json.",
                "Name the directory of a run, such as runs/demo.",
            )
        record = read_json(self.record_file)
        version = record.get("format") if isinstance(record, dict) else None
        if not isinstance(version, int) or version < 1:
            raise DataError(
                f"{escape(self.record_file)} is not the record of a run: it has no format number.",
                "Name the directory of a run.",
            )
        if version > FORMAT:
            raise DataError(
                f"{escape(self.record_file)} has format {version}, this inheritune reads {FORMAT}.",
                "Update inheritune.",
            )
        return dict(record)

    def record(self) -> RunRecord:
        """Read run.json as a typed record; raises as `read`."""
        return RunRecord.model_validate(self.read())

    def update(self, record: RunRecord) -> None:
        """Replace the fields of run.json that ``record`` sets; the others stay as they are."""
        refuse_removed(self.record_file)  # which is the better reason than a missing run.json
        write_json(self.record_file, self.read() | record.as_json())

    def _make_root(self) -> None:
        try:
            self._refuse_foreign()
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise _not_a_run(self.root, "is not a directory") from error
        except ValueError as error:
            raise _not_a_run(self.root, "holds a NUL") from error
        except OSError as error:
            if error.errno in {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}:
                raise _not_a_run(self.root, f"is not possible ({error.strerror})") from error
            raise cannot_write(self.root, error) from error

    def _refuse_foreign(self) -> None:
        if self.root.parts[:1] and self.root.parts[0].startswith("~"):
            raise _not_a_run(self.root, "starts with '~', which only a shell expands")
        real = self.root.resolve()
        for forbidden, description in (
            (Path(real.anchor), "the root of the file system"),
            (_home(), "the home directory"),
            (Path.cwd(), "the current directory"),
        ):
            if forbidden is not None and real == forbidden.resolve():
                raise _not_a_run(self.root, f"is {description}")
        if not real.is_dir():
            return
        own_files = (".lock", "..lock.json.", ".run.json.")  # of a start that is under way
        foreign = [path.name for path in real.iterdir() if not path.name.startswith(own_files)]
        if foreign and not self._is_ours():
            example = escape(min(foreign), 40)
            count = len(foreign)
            raise _not_a_run(self.root, f"holds {count} files that are no run, such as {example}")

    def _is_ours(self) -> bool:
        try:
            self.read()
        except DataError:
            return False
        return True


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _not_a_run(root: Path, why: str) -> RecipeError:
    return RecipeError(
        f"cannot put a run into {escape(root)}: it {why}.", "Name a new or empty directory."
    )
