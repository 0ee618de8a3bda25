"""Resolve a Hub revision to a commit and list its files; offline, use the last answer."""

import hashlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inheritune.errors import DataError, MachineError, escape
from inheritune.model_files.download.hub import ask_again, cache_errors, hub_errors, mirror_root
from inheritune.system.files import write_json
from inheritune.system.locks import locked
from inheritune.system.progress import Listener, Progress
from inheritune.system.strict_json import read_json

_MAX_SIZE = 2**50
_LONGEST_WAIT_S = 600  # for another process that downloads the same model
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ListedFile:
    """A file as the Hub lists it."""

    size: int
    blob_id: str | None  # Git's SHA-1 of the file, or of the LFS pointer to it
    sha256: str | None  # digest of the file itself, for large files only

    def matches(self, path: Path) -> bool:
        """Tell whether a file on the disk has the listed size and digest."""
        data = path.read_bytes()
        if self.sha256:
            return hashlib.sha256(data).hexdigest() == self.sha256
        if self.blob_id:  # SHA-1 finds accidents; trust does not depend on it
            from huggingface_hub.utils.sha import git_hash

            return git_hash(data) == self.blob_id
        return len(data) == self.size


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit."""

    commit: str  # all 40 digits
    files: Mapping[str, ListedFile]  # by name as the Hub gives it, which need not be safe as a path


def pin(model: str, revision: str | None) -> Listing:
    """Resolve a revision to a commit and list its files.

    Where the Hub cannot be reached, use its last answer for this revision; without one, raise
    MachineError.
    """
    root = mirror_root(model)
    if revision and _COMMIT.fullmatch(revision) and (listing := _stored(root, revision)):
        return listing  # a commit never changes
    reference = root / "refs" / f"{quote(revision or 'main', safe='')}.json"
    try:
        listing = _request(model, revision)
    except MachineError as error:
        if (last := _last(root, reference)) is None:
            raise
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:  # there, nobody expects an answer
            warnings.warn(
                f"{error.message} {revision or 'main'} is taken to mean {last.commit[:12]}, as "
                "last time",
                stacklevel=2,
            )
        return last
    if _last(root, reference) != listing:
        _store(root, reference, listing)
    return listing


def _request(model: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi, constants, errors

    ask = partial(
        HfApi(library_name="inheritune").model_info,
        model,
        revision=revision,
        files_metadata=True,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    with hub_errors(model, revision):
        try:
            return _listing(ask_again(ask))
        except (errors.HfHubHTTPError, errors.HFValidationError):
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise MachineError(
                f"what {constants.ENDPOINT} says of {model} cannot be read: {escape(error, 120)}.",
                "Check HF_ENDPOINT, or whether the network asks for a login.",
            ) from error


def _listing(info: Any) -> Listing:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise ValueError(f"{info.sha!r} is not a commit")
    files = {}
    for file in info.siblings or []:
        name, size = file.rfilename, file.size
        if not isinstance(name, str) or type(size) is not int or not 0 <= size <= _MAX_SIZE:
            raise ValueError(f"{name!r} has the size {size!r}")
        files[name] = ListedFile(size, file.blob_id, getattr(file.lfs, "sha256", None))
    return Listing(info.sha, files)


# --- earlier answers ---


def _listing_file(root: Path, commit: str) -> Path:
    return root / "journal" / commit / "listing.json"


def _store(root: Path, reference: Path, listing: Listing) -> None:
    files = {name: asdict(file) for name, file in listing.files.items()}
    path = _listing_file(root, listing.commit)
    with cache_errors(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        reference.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": 1, "files": files})
    write_json(reference, {"commit": listing.commit})


def _last(root: Path, reference: Path) -> Listing | None:
    with suppress(DataError, TypeError, LookupError):
        return _stored(root, read_json(reference)["commit"])
    return None


def _stored(root: Path, commit: str) -> Listing | None:
    if not _COMMIT.fullmatch(commit):
        return None
    with suppress(DataError, TypeError, LookupError, AttributeError):
        record = read_json(_listing_file(root, commit))
        files = record["files"] if record["format"] == 1 else {}
        return Listing(commit, {name: ListedFile(**file) for name, file in files.items()})
    return None


# --- one process at a time ---


@contextmanager
def one_writer(root: Path, model: str, on_progress: Listener) -> Iterator[None]:
    """Let one process at a time download a model in parts; wait ten minutes for another one."""
    give_up_at = time.monotonic() + _LONGEST_WAIT_S
    message = "another process downloads it: waiting"
    # Sent once, when the lock is first found held.
    notices = iter([Progress(f"download, {model}", message=message)])

    def wait() -> bool:
        for notice in notices:
            on_progress(notice)
        return time.monotonic() < give_up_at

    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    busy = f"another process still downloads {model} to {escape(root, 160)}"
    with locked(root / ".lock", busy, wait=wait):
        yield
