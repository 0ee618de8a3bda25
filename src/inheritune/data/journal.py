"""How far a preparation has come: what a killed one leaves, and the next one goes on from."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from inheritune.data.document_hashes import DocumentHashes
from inheritune.data.shards import ShardWriter, file_sha256
from inheritune.errors import DataError
from inheritune.system.files import read_json_file, sync_directory, write_json

__all__ = ["Journal"]

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
            _write(self._room / name, rest)
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
            found = read_json_file(self.path)
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
            found = file_sha256(path), file_sha256(index)
            if found != (entry["sha256"], entry["index_sha256"]):
                raise ValueError("a shard changed")
        return rest


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
