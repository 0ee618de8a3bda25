"""A run's directory: where each file lives, its record, and the lock for its one writer."""

import errno
import json
import math
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from filelock import FileLock, Timeout

from inheritune.errors import DataError, MachineError, RecipeError
from inheritune.regular_file import escape, read_regular_file

__all__ = ["FORMAT", "Run", "read_json_file", "sync_directory", "write_json"]

FORMAT = 1  # of run.json

_MAX_BYTES = 256_000_000  # of a JSON file of ours; the largest lists the files of a corpus


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
            _refused_by_system(root, error)
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
    def benchmark(self) -> Path:
        """The reference's val_loss, window by window."""
        return self.root / "benchmark.json"

    @property
    def target(self) -> Path:
        """The final model directory."""
        return self.root / "target"

    @property
    def report(self) -> Path:
        """Directory of the report page, its tables and figures."""
        return self.root / "report"

    def variant(self, name: str, layers: int) -> Path:
        """Directory of one training: a variant at one size.

        Args:
            name: Of the variant, as the recipe has it.
            layers: How many it has in this round.
        """
        return self.root / "variants" / name / f"{layers}-layers"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's one writer; the system frees the lock when the process ends, however.

        Raises:
            MachineError: Another process writes to this run; its number and machine are named.
        """
        holder = self.root / ".lock.json"
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise MachineError(
                f"another process works on {escape(self.root)}: {_holder(holder)}.",
                "Wait for it to end, or stop it.",
            ) from error
        except OSError as error:
            _refused_by_system(self.root, error)
        try:
            for stale in self.root.glob(".*.json.*.tmp"):  # of a process that was killed
                stale.unlink(missing_ok=True)
            write_json(holder, {"pid": os.getpid(), "machine": platform.node()})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def read(self) -> dict[str, Any]:
        """The record.

        Raises:
            DataError: It is missing, broken, not a run's, or of a newer inheritune.
        """
        record = read_json_file(self.record_file)
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


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader meets the old file or the new one, whatever happens.

    The bytes depend on the value alone. The mode follows the umask.

    Args:
        path: In an existing directory.
        value: JSON values; mappings keep their order.

    Raises:
        MachineError: The system refuses to write; the old file stays.
        ValueError: A number is NaN or infinite, which JSON cannot say.
    """
    data = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        _refused_by_system(path, error)


def read_json_file(path: Path) -> Any:
    """Read a JSON file of ours, strictly: no NaN, no duplicate keys, nothing but UTF-8.

    Raises:
        DataError: It is missing, unreadable or broken; the file is named.
    """
    try:
        data = read_regular_file(path, _MAX_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {escape(path)}: {error.strerror}.", "Check it.") from error
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else escape(error, 120)
        raise DataError(
            f"{escape(path)} is not valid JSON: {reason}.", "Restore it from a copy, or remove it."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large")
    return value


def sync_directory(path: Path) -> None:
    """Make the renames inside a directory durable.

    Args:
        path: The directory that the renamed files are in.

    Raises:
        OSError: The system refuses.
    """
    # Windows cannot open a directory and needs no such call.
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        holder = read_json_file(path)
        return f"process {int(holder['pid'])} on {escape(holder['machine'], 60)}"
    except (DataError, KeyError, TypeError, ValueError):
        return "process unknown"  # it has the lock and is about to write who it is


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _not_a_run(root: Path, why: str) -> RecipeError:
    return RecipeError(
        f"cannot put a run into {escape(root)}: it {why}.", "Name a new or empty directory."
    )


def _refused_by_system(path: Path, error: OSError) -> NoReturn:
    reason = (error.strerror or str(error)).lower()
    way_out = "Check the permissions of its directory."
    if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}:
        way_out = "Free some space and run again."
    raise MachineError(f"cannot write {escape(path)}: {reason}.", way_out) from error
