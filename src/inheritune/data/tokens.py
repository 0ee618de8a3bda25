"""Open a directory of prepared tokens: two streams of ids, and the manifest that describes them."""

import hashlib
import json
import re
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.shards import ShardEntry, check_shard, map_shard
from inheritune.errors import DataError
from inheritune.recipe.data import Data
from inheritune.system.files import sha256
from inheritune.system.strict_json import OWN_FILE, read_json_object

MANIFEST_FORMAT = 1
_MANIFEST_TYPES = {
    "shard_version": int,
    "tokenizer": dict,
    "embedding_rows": int,
    "policy": dict,
    "split": dict,
    "files": list,
    "fingerprint": str,
    "val_fingerprint": str,
    "sources": dict,
    "documents": int,
    "val_documents": int,
    "val_bytes": int,
    "overlap": dict,
    "request": dict,
}
_CONTENT = ("format", "shard_version", "tokenizer", "embedding_rows", "policy", "split", "files")
_SHARD_NAME = re.compile(r"(part-[0-9]{2}/)?(train|val)-[0-9]{5,}\.bin")
_AGAIN = "Prepare the tokens again."
_MANIFEST = replace(OWN_FILE, max_bytes=64 << 20, hint=_AGAIN)


class TokenStream:
    """One stream of token ids, read across the edges of its shards.

    Args:
        directory: Directory of the shards.
        entries: The shards, in order.
        rows: Rows of the embedding; every id is below.
    """

    def __init__(self, directory: Path, entries: list[ShardEntry], rows: int) -> None:
        self._directory, self._entries, self._rows = directory, entries, rows
        self._edges = np.cumsum([0] + [entry.ids for entry in entries])
        self._mapped: dict[int, NDArray[Any]] = {}
        self._mapping = threading.Lock()  # of several threads one maps a shard, and hashes it

    @property
    def num_ids(self) -> int:
        """Number of ids in the stream."""
        return int(self._edges[-1])

    def num_samples(self, seq_len: int) -> int:
        """Number of samples of ``seq_len`` inputs: each needs one id more, its last target."""
        return max(0, (self.num_ids - 1) // seq_len)

    def ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Read the ids at [start, stop) of the stream, (stop - start,) int64; see `samples`."""
        out = np.empty(stop - start, dtype=np.int64)
        self._read_into(out, start)
        return out

    def forget(self, before: int) -> None:
        """Unmap the shards that end before an id, until they are read again."""
        with self._mapping:
            for index in [i for i in self._mapped if self._edges[i + 1] <= before]:
                del self._mapped[index]

    def samples(self, ids: NDArray[Any], seq_len: int) -> NDArray[np.int64]:
        """Read samples by number: sample i has ids [iT, iT + T + 1), so each id is predicted once.

        Args:
            ids: (B,) sample numbers, in [0, num_samples(seq_len)).
            seq_len: T, number of inputs in a sample.

        Returns:
            (B, T + 1) int64; inputs are ``[:, :-1]``, targets ``[:, 1:]``.

        Raises:
            DataError: A shard that is read for the first time is not the one that was prepared.
            IndexError: A sample leaves the stream.
        """
        out = np.empty((len(ids), seq_len + 1), dtype=np.int64)
        for row, sample in zip(out, ids, strict=True):
            self._read_into(row, int(sample) * seq_len)
        return out

    def _read_into(self, out: NDArray[np.int64], start: int) -> None:
        if start < 0 or start + len(out) > self.num_ids:
            raise IndexError(f"ids [{start}, {start + len(out)}) of {self.num_ids}")
        done = 0
        shard = int(np.searchsorted(self._edges, start, side="right")) - 1
        while done < len(out):
            first = start + done - int(self._edges[shard])
            part = self._shard(shard)[first : first + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1

    def _shard(self, index: int) -> NDArray[Any]:
        with self._mapping:
            if index not in self._mapped:
                self._mapped[index] = map_shard(self._directory, self._entries[index], self._rows)
            return self._mapped[index]


class TokenDirectory:
    """An opened directory of prepared tokens, whose manifest is checked already."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        rows = manifest["embedding_rows"]
        self.train = TokenStream(path, _entries(manifest, "train"), rows)
        self.val = TokenStream(path, _entries(manifest, "val"), rows)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that fixes the content: equal means the same ids and the same split."""
        return str(self.manifest["fingerprint"])

    @property
    def val_fingerprint(self) -> str:
        """SHA-256 of tokenizer and held-out ids: losses compare only where it is equal."""
        return str(self.manifest["val_fingerprint"])

    @property
    def val_bytes(self) -> int:
        """UTF-8 bytes of the held-out text, for bits per byte."""
        return int(self.manifest["val_bytes"])

    def summary(self) -> dict[str, Any]:
        """Return what ``run.json`` keeps of the tokens; ``documents`` are those trained on."""
        return {
            "train_tokens": self.train.num_ids,
            "val_tokens": self.val.num_ids,
            "documents": self.manifest["documents"],
            "val_documents": self.manifest["val_documents"],
            "val_bytes": self.val_bytes,
            "fingerprint": self.fingerprint,
            "val_fingerprint": self.val_fingerprint,
            "overlap": self.manifest["overlap"],
            "source": self.manifest["sources"].get("source"),
            "commits": self.manifest["sources"].get("commits"),  # of Hub datasets
        }

    def taken(self) -> dict[str, Any]:
        """Return what was read and left out, and how documents begin; empty for older tokens.

        Of each source: the number of files by format, documents and their bytes, and what was left
        out of its folders. ``tokens_per_eos``: mean length of a document.
        """
        if (taken := self.manifest.get("taken")) is None:
            return {}
        documents = self.manifest["documents"] + self.manifest["val_documents"]
        ids = self.train.num_ids + self.val.num_ids
        return {"taken": taken | {"tokens_per_eos": round(ids / max(1, documents), 1)}}


def open_tokens(path: Path) -> TokenDirectory:
    """Open prepared tokens: sizes and headers are checked now, hashes on first use.

    Raises:
        DataError: The manifest or a shard is missing, broken, or of another format.
    """
    manifest = _read_manifest(path / "manifest.json")
    for entry in _entries(manifest):
        check_shard(path, entry, manifest["embedding_rows"])
    return TokenDirectory(path, manifest)


def verify_tokens(path: Path) -> TokenDirectory:
    """Open prepared tokens and compare the hash of every file.

    Raises:
        DataError: A file is not, byte for byte, the one that was prepared.
    """
    directory = open_tokens(path)
    rows = directory.manifest["embedding_rows"]
    for entry in _entries(directory.manifest):
        map_shard(path, entry, rows)
        index = (path / entry.name).with_suffix(".idx")
        is_there = index.is_file() and index.stat().st_size == 8 * entry.documents
        if not is_there or sha256(index) != entry.index_sha256:
            raise DataError(f"{index} is missing or has changed.", _AGAIN)
    return directory


def check_budget(
    tokens: TokenDirectory, planned: int, seq_len: int, allow_repeat: bool, step_tokens: int = 1
) -> None:
    """Refuse to train for longer than the tokens last, unless repeats are asked for.

    Args:
        planned: Training tokens of one round or variant.
        allow_repeat: ``data.allow_repeat`` of the recipe.
        step_tokens: ``train.batch_tokens``; no training is shorter than a step.

    Raises:
        DataError: The plan needs more than one epoch.
    """
    available = tokens.train.num_samples(seq_len) * seq_len
    if max(planned, step_tokens) > available and not allow_repeat:
        key, what = "train.tokens", f"the recipe trains for {planned} tokens"
        if planned <= step_tokens:
            key = "train.batch_tokens"
            what, planned = f"one step takes {step_tokens} tokens ({key})", step_tokens
        raise DataError(
            f"{what}, the text has {available}: that is {planned / max(1, available):.1f} epochs.",
            f"Lower {key}, add text, or set data.allow_repeat to true.",
        )


def check_length(train: int, val: int, seq_len: int, data: Data) -> None:
    """Refuse tokens that are too few for one sequence of either split.

    Args:
        train: Number of training ids.
        val: Number of held-out ids.
        data: The recipe's section, for the way out.

    Raises:
        DataError: A split has fewer than ``seq_len + 1`` ids.
    """
    for name, count in (("training", train), ("validation", val)):
        if count < seq_len + 1:
            by_hash = name == "validation" and data.val_source is None
            first = "Raise data.val_fraction, add text" if by_hash else "Add text"
            raise DataError(
                f"the {name} text has {count} tokens, one sequence needs {seq_len + 1} "
                f"(train.seq_len {seq_len} + 1).",
                f"{first}, or lower train.seq_len.",
            )


def canonical_digest(value: object) -> str:
    """Return the SHA-256 of a JSON value in its canonical form: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Digest the entries of a manifest that fix the ids and the split."""
    return canonical_digest({key: manifest[key] for key in _CONTENT})


def _entries(manifest: dict[str, Any], split: str = "") -> list[ShardEntry]:
    """List the shards of a split; by default of both."""
    entries = [ShardEntry(**entry) for entry in manifest["files"]]
    return [entry for entry in entries if Path(entry.name).name.startswith(split)]


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"there are no prepared tokens in {path.parent}.", "Prepare them first.")
    manifest = read_json_object(path, _MANIFEST)
    version = manifest.get("format")
    if version != MANIFEST_FORMAT:
        raise DataError(
            f"{path} has format {version}, this program reads {MANIFEST_FORMAT}.", _AGAIN
        )
    for key, kind in _MANIFEST_TYPES.items():
        if type(manifest.get(key)) is not kind:
            raise DataError(f"{path} lacks {key}, or garbles it.", _AGAIN)
    for entry in manifest["files"]:
        _check_entry(path, entry)
    if manifest["fingerprint"] != fingerprint_of(manifest):
        raise DataError(f"{path} was changed: its fingerprint is of another content.", _AGAIN)
    return dict(manifest)


def _check_entry(path: Path, entry: Any) -> None:
    types = {part.name: part.type for part in fields(ShardEntry)}
    actual = {key: type(value) for key, value in entry.items()} if isinstance(entry, dict) else {}
    if actual != types:
        raise DataError(f"{path} garbles an entry of files.", _AGAIN)
    # A manifest is input like any other: it must not lead out of its directory.
    if not _SHARD_NAME.fullmatch(entry["name"]) or entry["ids"] < 1:
        raise DataError(f"{path} lists {entry['name']!r}, which is no shard.", _AGAIN)
