"""Write and check token shards: a 64-byte header and ids, and an index of document starts."""

import hashlib
import stat
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.errors import DataError, reason_of
from inheritune.system.files import sha256, write_bytes

SHARD_VERSION = 1
SHARD_IDS = 32 << 20  # ids in a full shard: 64 MB of uint16
_MAGIC = b"INHTTOKS"
_HEADER = struct.Struct("<8sIIQQ32x")  # magic, version, bytes per id, number of ids, largest id
HEADER_BYTES = _HEADER.size
_AGAIN = "Prepare the tokens again."


@dataclass(frozen=True)
class ShardEntry:
    """A shard's entry in the manifest."""

    # Such as ``train-00000.bin``, or ``part-00/train-00000.bin`` of what several workers prepared;
    # the starts of its documents are in ``.idx``.
    name: str
    ids: int
    bytes: int
    max_id: int
    sha256: str
    documents: int  # that start in the shard
    index_sha256: str  # of the ``.idx`` file: uint64 starts, in ids from the shard's first


class ShardWriter:
    """Writes one stream of ids as shards, holding one shard in memory.

    Args:
        split: ``"train"`` or ``"val"``.
        rows: Rows of the embedding; up to 65,536 an id takes two bytes, then four.
        shard_ids: Ids in a full shard.
    """

    def __init__(self, directory: Path, split: str, rows: int, shard_ids: int = SHARD_IDS) -> None:
        self._directory, self._split, self._rows = directory, split, rows
        self._buffer = np.empty(shard_ids, dtype=id_type(rows))
        self._used = 0
        self._starts: list[int] = []
        self.entries: list[ShardEntry] = []
        self.num_ids = self.documents = 0

    def add(self, ids: NDArray[Any], begins: bool = True) -> None:
        """Append one document, which may continue in the next shard.

        Args:
            ids: (n,) of any integer type, EOS included.
            begins: Whether a document begins; False continues the one before.

        Raises:
            DataError: An id has no row in the embedding.
        """
        # Checked before the assignment: numpy would store 65536 as 0 without a word.
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._rows:
            raise DataError(
                f"the tokenizer gave id {int(ids.max())}, the embedding has {self._rows} rows.",
                "Use the tokenizer that belongs to the model.",
            )
        if begins:
            self._starts.append(self._used)
            self.documents += 1
        self.num_ids += len(ids)
        while len(ids):
            part = ids[: len(self._buffer) - self._used]
            self._buffer[self._used : self._used + len(part)] = part
            self._used += len(part)
            ids = ids[len(part) :]
            if self._used == len(self._buffer):
                self._flush()

    def state(self) -> tuple[dict[str, Any], bytes]:
        """Return the state between two documents as JSON values, and the ids not yet in a shard."""
        state = {
            "entries": [asdict(entry) for entry in self.entries],
            "starts": self._starts,
            "num_ids": self.num_ids,
            "documents": self.documents,
        }
        return state, self._buffer[: self._used].tobytes()

    def restore(self, state: dict[str, Any], rest: bytes) -> None:
        """Continue from the state of another writer, whose shards are in the directory."""
        ids = np.frombuffer(rest, dtype=self._buffer.dtype)
        self._buffer[: len(ids)] = ids
        self._used = len(ids)
        self._starts = list(state["starts"])
        self.entries = [ShardEntry(**entry) for entry in state["entries"]]
        self.num_ids, self.documents = state["num_ids"], state["documents"]

    def close(self) -> list[ShardEntry]:
        """Write the last shard; return the entries of all."""
        if self._used:
            self._flush()
        return self.entries

    def _flush(self) -> None:
        ids = self._buffer[: self._used]
        name = f"{self._split}-{len(self.entries):05d}.bin"
        max_id = int(ids.max())
        header = _HEADER.pack(_MAGIC, SHARD_VERSION, ids.itemsize, len(ids), max_id)
        size, digest = _write_shard(self._directory / name, header, ids)
        starts = np.array(self._starts, dtype="<u8")
        index = (self._directory / name).with_suffix(".idx")
        _, index_digest = _write_shard(index, b"", starts)
        self.entries.append(
            ShardEntry(name, len(ids), size, max_id, digest, len(starts), index_digest)
        )
        self._used = 0
        self._starts = []


def id_type(rows: int) -> np.dtype[Any]:
    """Return the type of stored ids: uint16 for up to 65,536 embedding rows, else uint32."""
    return np.dtype("<u2" if rows <= 1 << 16 else "<u4")


def check_shard(directory: Path, entry: ShardEntry, rows: int) -> None:
    """Check what can be checked at once: a shard's size, its header, its largest id.

    Raises:
        DataError: It is missing, cut short, of another format, or holds an id without a row.
    """
    path = directory / entry.name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise OSError(0, "it is not a regular file")
        with path.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason_of(error)}.", _AGAIN) from error
    size = status.st_size
    if len(header) < HEADER_BYTES:
        raise DataError(f"{path} has {size} bytes, not even a header of {HEADER_BYTES}.", _AGAIN)
    magic, version, width, ids, max_id = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise DataError(f"{path} is not a token shard: it begins with {magic!r}.", _AGAIN)
    if version != SHARD_VERSION:
        raise DataError(
            f"{path} has format version {version}, this program reads {SHARD_VERSION}.", _AGAIN
        )
    if width != id_type(rows).itemsize:
        raise DataError(f"{path} has {width} bytes an id, {rows} rows need another.", _AGAIN)
    if size != HEADER_BYTES + ids * width or size != entry.bytes or ids != entry.ids:
        raise DataError(
            f"{path} has {size} bytes and its header speaks of {ids} ids; expected "
            f"{entry.bytes} bytes and {entry.ids} ids.",
            _AGAIN,
        )
    if max_id >= rows or max_id != entry.max_id:
        raise DataError(_describe_range(path, rows, max_id), _AGAIN)


def map_shard(directory: Path, entry: ShardEntry, rows: int) -> NDArray[Any]:
    """Map the ids of a shard from disk, (ids,), once its hash has been compared.

    Raises:
        DataError: The file is not, byte for byte, the one that was prepared.
    """
    path = directory / entry.name
    check_shard(directory, entry, rows)
    digest = sha256(path)
    if digest != entry.sha256:
        raise DataError(
            f"{path} has changed since it was prepared: SHA-256 {digest[:12]}, expected "
            f"{entry.sha256[:12]}.",
            _AGAIN,
        )
    return np.memmap(path, dtype=id_type(rows), mode="r", offset=HEADER_BYTES, shape=(entry.ids,))


def _describe_range(path: Path, rows: int, max_id: int) -> str:
    ids = np.memmap(path, dtype=id_type(rows), mode="r", offset=HEADER_BYTES)
    outside = np.flatnonzero(ids >= rows)
    if len(outside):
        offset = int(outside[0])
        return f"{path} holds id {ids[offset]} at offset {offset}, the embedding has {rows} rows."
    return f"{path} says that its largest id is {max_id}, which is not so."


def _write_shard(path: Path, header: bytes, data: NDArray[Any]) -> tuple[int, str]:
    """Write a file, and return its size and its SHA-256."""
    body = data.view(np.uint8).data
    digest = hashlib.sha256(header)
    digest.update(body)
    write_bytes(path, header, body)
    return len(header) + len(body), digest.hexdigest()
