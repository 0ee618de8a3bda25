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

from inheritune.data.overlap import DocumentHashes
from inheritune.data.shards import ShardWriter
from inheritune.errors import DataError, MachineError
from inheritune.system.files import (
    locked,
    move_directory,
    sha256,
    sync_directory,
    write_bytes,
    write_errors,
    write_json,
)
from inheritune.system.strict_json import read_json

_FORMAT = 1


def make_token_directory(out: Path, build: Callable[["Journal"], dict[str, Any]]) -> None:
    """Make a token directory unless it is there.

    Args:
        out: The token directory.
        build: Writes the shards into ``journal.shards`` and returns the manifest. If it fails and
            the journal tells of finished shards, they stay for the next call.

    Raises:
        DataError: ``out`` holds something else, which must not be written over.
        MachineError: The disk is full or read-only, or another process makes the same tokens.
    """
    if not _is_prepared(out):
        with _working_directory(out) as journal:
            if not _is_prepared(out):  # another process may have finished it just now
                text = json.dumps(build(journal), indent=2, sort_keys=True) + "\n"
                write_bytes(journal.shards / "manifest.json", text.encode())
                move_directory(journal.shards, out)
    _remove_working_directory(out)


class Journal:
    """The state of a preparation between two documents, beside the shards it has finished.

    It is written whenever a shard is complete. A shard is on disk before the journal names it.

    Args:
        directory: The preparation's working directory.

    Attributes:
        path: The journal's file.
        shards: Directory of the shards.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "journal.json"
        self.shards = directory / "tokens"

    def clear(self) -> None:
        """Forget everything, and make the directory of the shards empty."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.shards, ignore_errors=True)
        for pattern in ("rest-*", "hashes-*"):
            for leftover in self._directory.glob(pattern):
                leftover.unlink(missing_ok=True)
        self.shards.mkdir()

    def hashes(self, split: str) -> DocumentHashes:
        """Open the document hashes of ``"train"`` or ``"val"``."""
        return DocumentHashes(self._directory / f"hashes-{split}")

    def write(
        self,
        state: dict[str, Any],
        writers: dict[str, ShardWriter],
        hashes: dict[str, DocumentHashes],
    ) -> None:
        """Save the state of the preparation, all of it or nothing.

        Args:
            state: JSON values that `read` returns.
            writers: Writers of both splits.
            hashes: Document hashes of both splits.
        """
        finished = sum(len(writer.entries) for writer in writers.values())
        splits, rest_names = {}, set()
        for split, writer in writers.items():
            writer_state, rest = writer.state()
            name = f"rest-{split}-{finished}"
            write_bytes(self._directory / name, rest)
            rest_names.add(name)
            splits[split] = {
                "writer": writer_state,
                "rest": name,
                "rest_sha256": hashlib.sha256(rest).hexdigest(),
                "hashes": hashes[split].flush(),
            }
        sync_directory(self.shards)
        write_json(self.path, {"format": _FORMAT, "state": state, "splits": splits})
        for old in self._directory.glob("rest-*"):
            if old.name not in rest_names:
                old.unlink(missing_ok=True)

    def read(
        self,
        request: dict[str, Any],
        writers: dict[str, ShardWriter],
        hashes: dict[str, DocumentHashes],
    ) -> dict[str, Any] | None:
        """Bring writers and hashes to where they stood.

        Args:
            request: Describes what is prepared now; the journal of another request is ignored.
            writers: New writers of both splits.
            hashes: Document hashes of both splits.

        Returns:
            The state that was saved with them. None where there is none that fits; then nothing
            was changed.
        """
        try:
            journal = read_json(self.path)
            if journal["format"] != _FORMAT:
                return None
            if journal["state"]["request"] != json.loads(json.dumps(request)):
                return None
            splits = journal["splits"]
            rests = {split: self._rest(splits[split], hashes[split]) for split in splits}
        except (DataError, OSError, KeyError, TypeError, ValueError):
            return None
        for split, part in splits.items():
            writers[split].restore(part["writer"], rests[split])
            hashes[split].cut(part["hashes"])
        state: dict[str, Any] = journal["state"]
        return state

    def _rest(self, part: dict[str, Any], hashes: DocumentHashes) -> bytes:
        """Read the ids not yet in a shard; every finished shard is compared with its hash."""
        rest: bytes = (self._directory / part["rest"]).read_bytes()
        if hashlib.sha256(rest).hexdigest() != part["rest_sha256"]:
            raise ValueError("the rest changed")
        if hashes.stored() < part["hashes"]:
            raise ValueError("document hashes are missing")
        for entry in part["writer"]["entries"]:
            path = self.shards / entry["name"]
            digests = sha256(path), sha256(path.with_suffix(".idx"))
            if digests != (entry["sha256"], entry["index_sha256"]):
                raise ValueError("a shard changed")
        return rest


def _is_prepared(out: Path) -> bool:
    if (out / "manifest.json").exists():
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds files but no tokens.", "Move them, or choose another run.")
    return False


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _remove_working_directory(out: Path) -> None:
    # Left by a process that was killed right after the rename.
    directory = _partial(out)
    if directory.is_dir():
        with suppress(MachineError), locked(directory / "lock", "another process is at it"):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _working_directory(out: Path) -> Iterator[Journal]:
    directory = _partial(out)
    busy = f"another process is preparing {out}"
    with write_errors(out), locked(directory / "lock", busy, "Wait for it, then run this again."):
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
