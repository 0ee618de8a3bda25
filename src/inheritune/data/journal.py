"""Make a token directory once, by one process, and let a killed one be continued.

Beside ``OUT`` lies ``OUT.partial`` while it is made: a lock, the finished shards, and a journal
that says how far the preparation has come. One rename makes the result appear, complete.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inheritune.data.token_writer import TokenWriter
from inheritune.errors import DataError, MachineError
from inheritune.system.files import (
    move_directory,
    sha256,
    sync_directory,
    write_bytes,
    write_errors,
    write_json,
)
from inheritune.system.locks import locked
from inheritune.system.strict_json import read_json

MANIFEST = "manifest.json"
NUM_PARTS = 64  # of a text that several workers prepare
_FORMAT = 3  # older ones are begun again: they read tables as one text, or count no bytes


def make_token_directory(out: Path, build: Callable[["Journal"], dict[str, Any]]) -> None:
    """Make a token directory unless it is there.

    Args:
        build: Writes the shards into ``journal.shards`` and returns the manifest. If it fails and
            the journal names finished shards, they stay for the next call.

    Raises:
        DataError: ``out`` holds something else, which must not be written over.
        MachineError: The disk is full or read-only, or another process makes the same tokens.
    """
    if not _is_prepared(out):
        with working_directory(out) as journal:
            if not _is_prepared(out):  # another process may have finished it just now
                write_manifest(journal.shards, build(journal))
                move_directory(journal.shards, out)
    remove_working_directory(out)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write the file that makes a directory of shards complete."""
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_bytes(directory / MANIFEST, text.encode())


def missing_parts(out: Path) -> list[int]:
    """Number the parts of a text that workers have not made yet, from 0."""
    return [n for n in range(NUM_PARTS) if not (part_path(out, n) / MANIFEST).exists()]


def part_path(out: Path, number: int) -> Path:
    """Directory of the shards of one part, within the token directory."""
    return out / f"part-{number:02d}"


class Journal:
    """The state of a preparation between two documents, beside the shards it has finished.

    It is written whenever a shard is complete. A shard is on disk before the journal names it.

    Attributes:
        directory: The preparation's working directory.
        path: The journal's file.
        shards: Directory of the shards.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "journal.json"
        self.shards = directory / "tokens"

    def clear(self) -> None:
        """Forget everything, and make the directory of the shards empty."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.shards, ignore_errors=True)
        for leftover in (*self.directory.glob("rest-*"), *self.directory.glob("hashes-*")):
            leftover.unlink(missing_ok=True)
        self.shards.mkdir()

    def write(self, state: dict[str, Any], writer: TokenWriter) -> None:
        """Save the state of the preparation, JSON values that `read` returns, whole or not at all.

        A ``rest`` file holds the ids that are not in a shard yet.
        """
        splits, rest_names = {}, set()
        for split, shards in writer.splits.items():
            shards_state, rest = shards.state()
            name = f"rest-{split}-{writer.num_shards}"
            write_bytes(self.directory / name, rest)
            rest_names.add(name)
            splits[split] = {
                "writer": shards_state,
                "rest": name,
                "rest_sha256": hashlib.sha256(rest).hexdigest(),
                "hashes": writer.hashes[split].flush(),
            }
        sync_directory(self.shards)
        write_json(self.path, {"format": _FORMAT, "state": state, "splits": splits})
        for old in self.directory.glob("rest-*"):
            if old.name not in rest_names:
                old.unlink(missing_ok=True)

    def read(self, request: dict[str, Any], writer: TokenWriter) -> dict[str, Any] | None:
        """Bring a new writer to where the one of an earlier process stood.

        Args:
            request: Describes what is prepared now; the journal of another request is ignored.

        Returns:
            The state that was saved. None where there is none that fits, or a finished shard is not
            what was written; then the writer is unchanged.
        """
        try:
            journal = read_json(self.path)
            if journal["format"] != _FORMAT:
                return None
            if journal["state"]["request"] != json.loads(json.dumps(request)):
                return None
            splits = journal["splits"]
            rests = {
                split: self._rest(part, writer.hashes[split].stored())
                for split, part in splits.items()
            }
        except (DataError, OSError, KeyError, TypeError, ValueError):
            return None
        for split, part in splits.items():
            writer.splits[split].restore(part["writer"], rests[split])
            writer.hashes[split].cut(part["hashes"])
        state: dict[str, Any] = journal["state"]
        return state

    def _rest(self, part: dict[str, Any], num_hashes: int) -> bytes:
        """Read the ids not yet in a shard; compare every finished shard with its digest."""
        rest: bytes = (self.directory / part["rest"]).read_bytes()
        if hashlib.sha256(rest).hexdigest() != part["rest_sha256"]:
            raise ValueError("the rest changed")
        if num_hashes < part["hashes"]:
            raise ValueError("document hashes are missing")
        for entry in part["writer"]["entries"]:
            path = self.shards / entry["name"]
            digests = sha256(path), sha256(path.with_suffix(".idx"))
            if digests != (entry["sha256"], entry["index_sha256"]):
                raise ValueError("a shard changed")
        return rest


def _is_prepared(out: Path) -> bool:
    if (out / MANIFEST).exists():
        return True
    if any(out.glob("part-*")):
        done = NUM_PARTS - len(missing_parts(out))
        raise DataError(
            f"workers prepare {out}: {done} of {NUM_PARTS} parts are there.",
            "Start those that ended with the same --worker, or delete it to prepare it alone.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds files but no tokens.", "Move them, or choose another run.")
    return False


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def remove_working_directory(out: Path) -> None:
    """Remove what a process left that was killed right after the rename."""
    directory = _partial(out)
    if directory.is_dir():
        with suppress(MachineError), locked(directory / "lock", "another process is at it"):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def working_directory(out: Path, wait: Callable[[], bool] = lambda: False) -> Iterator[Journal]:
    """Work beside ``out``, alone; what is not finished stays there if the journal names it.

    Args:
        wait: Called several times a second while another process works there; see `locked`.
    """
    directory = _partial(out)
    busy, hint = f"another process is preparing {out}", "Wait for it, then run this again."
    with write_errors(out), locked(directory / "lock", busy, hint, wait):
        journal = Journal(directory)
        try:
            if not journal.path.exists():
                journal.clear()  # left by a process that was killed early
            yield journal
        except BaseException:
            # Finished shards are worth hours, whatever went wrong: what does not fit is cleared.
            if not journal.path.exists():
                shutil.rmtree(directory, ignore_errors=True)
            raise
        else:
            shutil.rmtree(directory, ignore_errors=True)
