"""Which commit a revision of a Hub model means, and which files it has: asked, or remembered.

One process at a time writes to what was downloaded of a model.
"""

import hashlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inheritune.errors import DataError, Interrupted, MachineError, escape
from inheritune.model_files.download.hub import hub_errors
from inheritune.model_files.download.partial_file import writing
from inheritune.model_files.download.ranged_get import BACKOFF_S, TRY_LATER
from inheritune.system.files import locked, write_json
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.strict_json import read_json

__all__ = ["ListedFile", "Listing", "mirror_root", "one_writer", "pin", "stopped"]

_MAX_SIZE = 2**50
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ListedFile:
    """What the Hub says about a file.

    Attributes:
        size: In bytes.
        blob_id: Git's SHA-1 of it, or of the pointer to it.
        sha256: Of the file itself, where it is a large one.
    """

    size: int
    blob_id: str | None
    sha256: str | None

    def matches(self, path: Path) -> bool:
        """Whether a file on the disk has the size and the digest that are listed."""
        data = path.read_bytes()
        if self.sha256:
            return hashlib.sha256(data).hexdigest() == self.sha256
        if self.blob_id:
            # What Git itself calls the file, no matter of trust.
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            return blob.hexdigest() == self.blob_id
        return len(data) == self.size


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit.

    Attributes:
        commit: In full.
        files: By name, as the Hub lists them; not all of them are safe names.
    """

    commit: str
    files: Mapping[str, ListedFile]


def mirror_root(model: str) -> Path:
    """Where what was downloaded of a model in parts is kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "inheritune" / f"models--{model.replace('/', '--')}"


def pin(model: str, revision: str | None) -> Listing:
    """Resolve a revision to a commit and list its files.

    Where the Hub cannot be reached, a revision means what it meant the last time.

    Args:
        model: Hub id.
        revision: Branch, tag or commit; None: the main branch.

    Raises:
        SourceError: The Hub has no such model or revision, or does not show it to this account.
        MachineError: The Hub cannot be reached, and nothing is remembered.
    """
    root = mirror_root(model)
    if revision and _COMMIT.fullmatch(revision) and (known := _remembered(root, revision)):
        return known  # a commit never changes
    reference = root / "refs" / f"{quote(revision or 'main', safe='')}.json"
    try:
        listing = _ask(model, revision)
    except MachineError as error:
        if (known := _last(root, reference)) is None:
            raise
        _warn(model, revision, known.commit, error)
        return known
    _remember(root, reference, listing)
    return listing


def _warn(model: str, revision: str | None, commit: str, error: MachineError) -> None:
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:  # there, nobody expects an answer
        warnings.warn(
            f"{error.message} {revision or 'main'} is taken to mean {commit[:12]}, as last time",
            stacklevel=3,
        )


def _ask(model: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi, constants, errors

    api, timeout = HfApi(library_name="inheritune"), constants.HF_HUB_ETAG_TIMEOUT
    with hub_errors(model, revision):
        for wait_s in (*BACKOFF_S[:2], None):  # a short while only: nothing has been begun yet
            try:
                info = api.model_info(
                    model, revision=revision, files_metadata=True, timeout=timeout
                )
                return _listing(info)
            except errors.HfHubHTTPError as error:
                if wait_s is None or error.response.status_code not in TRY_LATER:
                    raise
                time.sleep(wait_s)
            except errors.HFValidationError:
                raise
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise MachineError(
                    f"what {constants.ENDPOINT} says of {model} cannot be read: "
                    f"{escape(error, 120)}.",
                    "Check HF_ENDPOINT, or whether the network asks for a login.",
                ) from error
    raise AssertionError("the last try returns or raises")


def _listing(info: Any) -> Listing:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise ValueError(f"{info.sha!r} is no commit")
    files = {}
    for file in info.siblings or []:
        name, size = file.rfilename, file.size
        if not isinstance(name, str) or type(size) is not int or not 0 <= size <= _MAX_SIZE:
            raise ValueError(f"{name!r} has the size {size!r}")
        files[name] = ListedFile(size, file.blob_id, getattr(file.lfs, "sha256", None))
    return Listing(info.sha, files)


def _listing_file(root: Path, commit: str) -> Path:
    return root / "journal" / commit / "listing.json"


def _remember(root: Path, reference: Path, listing: Listing) -> None:
    if _last(root, reference) == listing:
        return
    files = {name: asdict(file) for name, file in listing.files.items()}
    path = _listing_file(root, listing.commit)
    with writing(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        reference.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": 1, "files": files})
    write_json(reference, {"commit": listing.commit})


def _last(root: Path, reference: Path) -> Listing | None:
    with suppress(DataError, TypeError, LookupError):
        return _remembered(root, read_json(reference)["commit"])
    return None


def _remembered(root: Path, commit: str) -> Listing | None:
    if not _COMMIT.fullmatch(commit):
        return None
    with suppress(DataError, TypeError, LookupError, AttributeError):
        record = read_json(_listing_file(root, commit))
        files = record["files"] if record["format"] == 1 else {}
        return Listing(commit, {name: ListedFile(**file) for name, file in files.items()})
    return None


_LONGEST_WAIT_S = 600


@contextmanager
def one_writer(
    root: Path,
    model: str,
    on_progress: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Be the only process that writes below a directory; wait for another one to end.

    Args:
        root: Made if it is not there.
        model: Hub id, for messages.
        on_progress: Told when there is another one.
        stop: Asked several times a second while waiting.

    Raises:
        MachineError: The system refuses, or the other one does not end within ten minutes.
        Interrupted: ``stop`` said so.
    """
    began, told = time.monotonic(), False

    def wait() -> bool:
        nonlocal told
        if not told:
            waiting = "another process downloads it: waiting"
            on_progress(Progress(f"download, {model}", message=waiting))
            told = True
        if stop():
            raise stopped(model)
        return time.monotonic() < began + _LONGEST_WAIT_S

    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    busy = f"another process still downloads {model} to {escape(root, 160)}"
    with locked(root / ".lock", busy, wait=wait):
        yield


def stopped(model: str) -> Interrupted:
    """What to raise when a download is to stop.

    Args:
        model: Hub id.
    """
    return Interrupted(
        f"stopped while {model} was downloaded; what has arrived is kept.",
        "Run the same command to continue.",
    )
