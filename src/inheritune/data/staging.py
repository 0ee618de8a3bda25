"""A token directory appears complete or not at all, and is made by one process at a time.

How far a preparation has come: what a killed one leaves, and the next one goes on from.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
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

__all__ = ["Journal", "is_prepared", "publish", "staging_directory", "sweep"]

_FORMAT = 1


class Journal:
    """The state of a preparation between two documents, beside the shards it has finished.

    It is written whenever a shard is complete. A shard is on disk before the journal tells of it,
    so that whatever the journal tells of is there.

    Args:
        room: The directory of the preparation.

    Attributes:
        path: The journal itself.
        shards: The directory of the shards.
    """

    def __init__(self, room: Path) -> None:
        self._room = room
        self.path = room / "journal.json"
        self.shards = room / "tokens"

    def clear(self) -> None:
        """Forget everything; the directory of the shards is there and empty."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.shards, ignore_errors=True)
        for name in ("rest-*", "hashes-*"):
            for left in self._room.glob(name):
                left.unlink(missing_ok=True)
        self.shards.mkdir()

    def hashes(self, split: str) -> DocumentHashes:
        """The document hashes of ``"train"`` or ``"val"``."""
        return DocumentHashes(self._room / f"hashes-{split}")

    def write(
        self,
        state: dict[str, Any],
        writers: dict[str, ShardWriter],
        hashes: dict[str, DocumentHashes],
    ) -> None:
        """Keep where everything stands, all of it or nothing.

        Args:
            state: What else has to be known, as JSON values.
            writers: Of both splits.
            hashes: Of both splits.
        """
        finished = sum(len(writer.entries) for writer in writers.values())
        splits, kept = {}, set()
        for split, writer in writers.items():
            of_writer, rest = writer.state()
            name = f"rest-{split}-{finished}"
            write_bytes(self._room / name, rest)
            kept.add(name)
            splits[split] = {
                "writer": of_writer,
                "rest": name,
                "rest_sha256": hashlib.sha256(rest).hexdigest(),
                "hashes": hashes[split].flush(),
            }
        sync_directory(self.shards)
        write_json(self.path, {"format": _FORMAT, "state": state, "splits": splits})
        for old in self._room.glob("rest-*"):
            if old.name not in kept:
                old.unlink(missing_ok=True)

    def read(
        self,
        request: dict[str, Any],
        writers: dict[str, ShardWriter],
        hashes: dict[str, DocumentHashes],
    ) -> dict[str, Any] | None:
        """Bring writers and hashes to where they stood.

        Args:
            request: What is prepared now; a journal of another request is of no use.
            writers: Of both splits, new.
            hashes: Of both splits.

        Returns:
            The state that was written with them. None where there is none that fits; then nothing
            was changed.
        """
        try:
            found = read_json(self.path)
            if found["format"] != _FORMAT:
                return None
            if found["state"]["request"] != json.loads(json.dumps(request)):
                return None
            rests = {
                split: self._checked(part, hashes[split]) for split, part in found["splits"].items()
            }
        except (DataError, OSError, KeyError, TypeError, ValueError):
            return None
        for split, part in found["splits"].items():
            writers[split].restore(part["writer"], rests[split])
            hashes[split].cut(part["hashes"])
        state: dict[str, Any] = found["state"]
        return state

    def _checked(self, part: dict[str, Any], hashes: DocumentHashes) -> bytes:
        """The ids not yet in a shard; every finished shard is compared with its hash."""
        rest: bytes = (self._room / part["rest"]).read_bytes()
        if hashlib.sha256(rest).hexdigest() != part["rest_sha256"]:
            raise ValueError("the rest changed")
        if hashes.stored() < part["hashes"]:
            raise ValueError("document hashes are missing")
        for entry in part["writer"]["entries"]:
            path = self.shards / entry["name"]
            index = path.with_suffix(".idx")
            found = sha256(path), sha256(index)
            if found != (entry["sha256"], entry["index_sha256"]):
                raise ValueError("a shard changed")
        return rest


def is_prepared(out: Path) -> bool:
    """Whether ``out`` holds finished tokens.

    Raises:
        DataError: It holds something else, which must not be written over.
    """
    if (out / "manifest.json").exists():
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds files but no tokens.", "Move them, or choose another run.")
    return False


def sweep(out: Path) -> None:
    """Remove what a process left that was killed right after it had published ``out``."""
    room = out.with_name(out.name + ".partial")
    if room.is_dir():
        with suppress(MachineError), locked(room / "lock", "another process is at it"):
            shutil.rmtree(room, ignore_errors=True)


@contextmanager
def staging_directory(out: Path) -> Iterator[Journal]:
    """A journal, and beside ``out`` the directory it is of, that one process at a time may fill.

    Both are gone afterwards, except where work ended early and the journal tells of finished
    shards: the next process goes on from there.

    Raises:
        MachineError: The disk is full or read-only, or another process is at it.
    """
    room = out.with_name(out.name + ".partial")
    busy = f"another process is preparing {out}"
    with write_errors(out), locked(room / "lock", busy, "Wait for it, then run this again."):
        journal = Journal(room)
        try:
            if not journal.path.exists():
                journal.clear()  # left by a process that was killed early
            yield journal
        except BaseException:
            # Finished shards are worth hours, whatever went wrong: what does not fit is cleared.
            if not journal.path.exists():
                shutil.rmtree(room, ignore_errors=True)
            raise
        else:
            shutil.rmtree(room, ignore_errors=True)


def publish(staging: Path, manifest: dict[str, Any], out: Path) -> None:
    """Write the manifest, then move the finished directory to its place by one rename."""
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_bytes(staging / "manifest.json", text.encode())
    move_directory(staging, out)
