"""Open a Hub model and download only the byte ranges of its weights that are needed.

The directory looks like any model directory: small files are whole, weight files have their full
size. At first only their headers are present; `PartialModel.download` fetches more ranges.
"""

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from inheritune.errors import MachineError, SourceError, escape
from inheritune.model_files.download.hub import (
    cached_snapshot,
    is_hub_id,
    mirror_root,
    wanted_files,
)
from inheritune.model_files.download.listing import Listing, one_writer, pin
from inheritune.model_files.download.partial_file import (
    PartialFile,
    Range,
    bridged,
    byte_count,
    merged,
    pieces,
    subtracted,
)
from inheritune.model_files.download.ranged_get import RangeClient, RangesRefusedError
from inheritune.model_files.refusals import refuse_files
from inheritune.model_files.safe_path import INDEX, SINGLE_FILE, read_weight_index
from inheritune.system.disk_space import refuse_full_disk
from inheritune.system.progress import Listener, Progress, silent

_PART = 32 * 2**20  # bytes of one request
_PARALLEL = 4
# Ranges are joined over gaps: a request takes about as long as a megabyte.
_WIDEST_GAP = 2**20
_GAPS_SHARE = 128  # all gaps together are at most 1/128 of the missing bytes
_MAX_HEADER = 16 * 2**20  # as in safetensors.py, which then refuses a longer one
_MAX_SMALL = 256 * 2**20

FileRange = tuple[str, int, int]
"""File name, first byte and size."""


@dataclass(frozen=True)
class PartialModel:
    """A Hub model at one commit, with some of its files downloaded only in part."""

    directory: Path  # a model directory; its name is the commit
    name: str
    commit: str  # all 40 digits
    listing: Listing | None = None  # None: a complete directory of the Hub's own cache

    def missing_bytes(self, ranges: Iterable[FileRange]) -> int:
        """Count the bytes that `download` would fetch."""
        return sum(byte_count(missing) for _, missing in self._missing(ranges))

    def download(
        self,
        ranges: Iterable[FileRange],
        *,
        prefix: bool = False,
        on_progress: Listener = silent,
    ) -> None:
        """Fetch the missing bytes of these ranges; resume where a killed download ended.

        Args:
            prefix: All ranges begin at byte 0, so that a server which ignores ranges can be cut off
                after them instead of sending whole files.

        Raises:
            SourceError: The Hub does not have a file, or does not show it to this account.
            MachineError: The Hub cannot be reached, or the disk is full or read-only.
        """
        ranges = list(ranges)
        if not self.missing_bytes(ranges):
            return
        with one_writer(self.directory.parent, self.name, on_progress):
            parts = [
                (file, part)
                # Asked again under the lock: another process may have fetched some meanwhile.
                for file, missing in self._missing(ranges)
                for part in pieces(missing, _PART)
            ]
            self._fetch(parts, prefix, on_progress)

    def _missing(self, ranges: Iterable[FileRange]) -> Iterator[tuple[PartialFile, list[Range]]]:
        if self.listing is None:
            return
        by_file: dict[str, list[Range]] = {}
        for name, first, size in ranges:
            by_file.setdefault(name, []).append((first, first + size))
        for name in sorted(by_file):
            file = self._file(name)
            needed = merged(by_file[name])
            assert not needed or (needed[0][0] >= 0 and needed[-1][1] <= file.size), name
            missing = subtracted(needed, file.present)
            if missing:
                yield file, bridged(missing, byte_count(missing) // _GAPS_SHARE, _WIDEST_GAP)

    def _file(self, name: str) -> PartialFile:
        assert self.listing is not None
        journal = self.directory.parent / "journal" / self.commit / f"{quote(name, safe='')}.jsonl"
        size = self.listing.files[name].size
        return PartialFile(name, self.directory / name, journal, size, self.commit)

    def _fetch(
        self, parts: Collection[tuple[PartialFile, Range]], prefix: bool, on_progress: Listener
    ) -> None:
        total = byte_count(part for _, part in parts)
        hint = "Free some space, or set HF_HOME to another disk."
        refuse_full_disk(self.directory.parent, total, f"the download of {self.name}", hint)
        client = RangeClient(self.name, self.commit)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            try:
                waiting = {pool.submit(_fetch_part, client, *part, prefix) for part in parts}
                while waiting:
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    received = min(client.received, total)
                    on_progress(Progress(f"download, {self.name}", received, total, "bytes"))
            except BaseException:
                client.cancelled.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def fetch_small_files(self, names: Iterable[str]) -> None:
        """Fetch files without weights and check their digests."""
        assert self.listing is not None
        sizes = {name: self.listing.files[name].size for name in names}
        for name, size in sizes.items():
            if size > _MAX_SMALL:
                raise SourceError(
                    f"{escape(name)} of {self.name} has {size:,} bytes; "
                    f"{_MAX_SMALL:,} are the most for a file that holds no weights.",
                    "Do not use this model.",
                )
        self._make_empty_files(sizes)
        missing = [name for name, size in sizes.items() if self.missing_bytes([(name, 0, size)])]
        self.download((name, 0, sizes[name]) for name in missing)
        for name in missing:
            if not self.listing.files[name].matches(self.directory / name):
                self._file(name).discard()
                raise MachineError(
                    f"{escape(name)} of {self.name} does not have the digest that the Hub lists.",
                    "Run the same command again: the file is then downloaded anew.",
                )

    def fetch_headers(self, names: Collection[str]) -> None:
        """Fetch the header of each weight file, in two rounds of requests at most."""
        assert self.listing is not None
        self._make_empty_files(names)
        sizes = {name: self.listing.files[name].size for name in names}
        # A little more than the length, which is often enough for all of a header, and always for
        # a message that says what the file is if it is something else.
        starts = {name: min(n, max(64, min(2**16, n // 256))) for name, n in sizes.items()}
        self.download([(name, 0, end) for name, end in starts.items()], prefix=True)
        ends = {name: min(n, _header_end(self.directory / name)) for name, n in sizes.items()}
        self.download([(name, 0, end) for name, end in ends.items()], prefix=True)

    def _make_empty_files(self, names: Iterable[str]) -> None:
        for file in map(self._file, names):  # no range of an empty file is ever missing
            if not file.size and not file.path.exists():
                with file.opened():
                    pass


def open_partial(model: str, revision: str | None) -> PartialModel:
    """Open a Hub model with its small files and the headers of its weight files only.

    A model that is complete in the Hub's own cache is opened there.

    Args:
        revision: Branch, tag or commit, resolved now; None: the main branch.

    Raises:
        SourceError: The Hub has no such model or revision, does not show it to this account, or it
            holds no safetensors.
        MachineError: The Hub cannot be reached and something is missing, or the disk is full or
            read-only.
    """
    if not is_hub_id(model):
        raise SourceError(f"{escape(model)} is not a Hub id.", "Name a model as owner/name.")
    try:
        listing = pin(model, revision)
    except MachineError:
        snapshot = cached_snapshot(model, revision)
        if snapshot is None or not _is_complete(snapshot, {"config.json"}):
            raise
        return PartialModel(snapshot, model, snapshot.name)
    refuse_files(listing.files.keys(), model)
    sizes = {name: file.size for name, file in listing.files.items()}
    names = wanted_files(sizes, model)
    small = {name for name in names if not name.endswith(".safetensors")}
    snapshot = cached_snapshot(model, listing.commit)
    if snapshot is not None and _is_complete(snapshot, small):
        return PartialModel(snapshot, model, listing.commit)
    partial = PartialModel(mirror_root(model) / listing.commit, model, listing.commit, listing)
    partial.fetch_small_files(sorted(small))
    weights = _weight_files(partial.directory, single=SINGLE_FILE in names)
    for name in weights:
        if name not in listing.files:
            raise SourceError(
                f"{INDEX} of {model} names {escape(name)}, which is not there.",
                "Name another revision of the model.",
            )
    partial.fetch_headers(weights)
    return partial


def _weight_files(directory: Path, *, single: bool) -> list[str]:
    if single:  # taken where both are there, as transformers does
        return [SINGLE_FILE]
    # Names are checked before anything is asked for: one could lead elsewhere.
    return sorted(set(read_weight_index(directory / INDEX)[0].values()))


def _is_complete(snapshot: Path, small: Iterable[str]) -> bool:
    if not all((snapshot / name).exists() for name in small):
        return False
    if (snapshot / SINGLE_FILE).exists():
        return True
    if not (snapshot / INDEX).exists():
        return False
    return all((snapshot / name).exists() for name in _weight_files(snapshot, single=False))


def _header_end(path: Path) -> int:
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    # What is no header is refused when it is read; nothing more of it is needed.
    return 8 + length if start[8:] == b"{" and length <= _MAX_HEADER else 0


def _fetch_part(client: RangeClient, file: PartialFile, part: Range, prefix: bool) -> None:
    if not file.ranges_refused:
        try:
            return client.fetch(file, part, prefix=prefix)
        except RangesRefusedError:
            file.ranges_refused = True
    with file.whole:  # the first thread fetches the file for all
        if subtracted([part], file.present) and not client.cancelled.is_set():
            client.fetch(file, (0, file.size))
