"""A run's directory: where each file lives, its record, and the lock for its one writer."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from inheritune.errors import DataError, RecipeError, escape
from inheritune.system.files import cannot_write, locked, write_json
from inheritune.system.strict_json import read_json

__all__ = ["FORMAT", "RUN", "TRAIN", "Run"]

FORMAT = 1  # of run.json
# What a directory was made by, in its record: a recipe, or `train MODEL TOKENS OUT`.
RUN, TRAIN = "run", "train"


class Run:
    """One run, and where each of its files lives; all paths are below ``root``.

    Args:
        root: The run's directory. It may be moved: nothing inside names it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path) -> Self:
        """Make the directory, or take up the run that is already in it.

        Args:
            root: Missing, empty, or the directory of an earlier run.

        Raises:
            RecipeError: It is the root of the file system, the home directory, the current
                directory, a file, or holds anything that is not a run; nothing is touched.
            MachineError: The system refuses to make it.
        """
        run = cls(root)
        try:
            run._refuse_foreign()
            root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise _not_a_run(root, "is not a directory") from error
        except ValueError as error:
            raise _not_a_run(root, "holds a NUL") from error
        except OSError as error:
            if error.errno in {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}:
                raise _not_a_run(root, f"is not possible ({error.strerror})") from error
            raise cannot_write(root, error) from error
        if not run.record_file.exists():
            write_json(run.record_file, {"format": FORMAT})  # from now on the directory is ours
        return run

    @property
    def recipe_file(self) -> Path:
        """The recipe, as it was given."""
        return self.root / "recipe.yaml"

    @property
    def record_file(self) -> Path:
        """The record: what was asked for, what happened, what came out."""
        return self.root / "run.json"

    @property
    def log_file(self) -> Path:
        """Everything that was logged."""
        return self.root / "log.txt"

    @property
    def tokens(self) -> Path:
        """Directory of token shards and their manifest."""
        return self.root / "tokens"

    @property
    def reference(self) -> Path:
        """Model directory of a reference that is trained here."""
        return self.root / "reference"

    @property
    def logits(self) -> Path:
        """What the reference predicts for the training tokens, where a variant keeps it."""
        return self.reference / "logits"

    @property
    def pin(self) -> Path:
        """Which commit of a Hub model the reference is."""
        return self.root / "reference.json"

    @property
    def benchmark(self) -> Path:
        """The reference's val_loss, window by window."""
        return self.root / "benchmark.json"

    @property
    def analysis(self) -> Path:
        """What was seen of the attention and the layers of reference and target."""
        return self.root / "analysis.json"

    @property
    def samples(self) -> Path:
        """What the models wrote after the recipe's prompts."""
        return self.root / "samples.json"

    @property
    def target(self) -> Path:
        """The final model directory."""
        return self.root / "target"

    @property
    def report(self) -> Path:
        """Directory of the report page, its tables and figures."""
        return self.root / "report"

    def variant(self, name: str, layers: int, seed: int | None = None) -> Path:
        """Directory of one training: a variant at one size.

        Args:
            name: Of the variant, as the recipe has it.
            layers: How many it has in this round.
            seed: Of a training that repeats another; None: of the first of its variant.
        """
        repeat = "" if seed is None else f"-seed-{seed}"
        return self.root / "variants" / name / f"{layers}-layers{repeat}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's one writer; the system frees the lock when the process ends, however.

        Raises:
            MachineError: Another process writes to this run; its number and machine are named.
        """
        with locked(self.root / ".lock", f"another process works on {escape(self.root)}"):
            yield

    def read(self) -> dict[str, Any]:
        """The record.

        Raises:
            DataError: It is missing, broken, not a run's, or of a newer inheritune.
        """
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

    def update(self, **fields: Any) -> dict[str, Any]:
        """Replace fields of the record; the others stay.

        Args:
            fields: Top-level fields, as JSON values.

        Returns:
            The whole record.
        """
        record = self.read() | fields
        write_json(self.record_file, record)
        return record

    def _refuse_foreign(self) -> None:
        if self.root.parts[:1] and self.root.parts[0].startswith("~"):
            raise _not_a_run(self.root, "starts with '~', which only a shell expands")
        real = self.root.resolve()
        for place, words in (
            (Path(real.anchor), "the root of the file system"),
            (_home(), "the home directory"),
            (Path.cwd(), "the current directory"),
        ):
            if place is not None and real == place.resolve():
                raise _not_a_run(self.root, f"is {words}")
        if not real.is_dir():
            return
        mine = (".lock", ".lock.json", ".run.json.")
        foreign = [path.name for path in real.iterdir() if not path.name.startswith(mine)]
        if foreign and not self._is_ours():
            found = escape(min(foreign), 40)
            raise _not_a_run(self.root, f"holds {len(foreign)} files that are no run, as {found}")

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
