"""Recognise Hub ids and the files worth downloading, ask again, and translate errors of the Hub."""

import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from inheritune.errors import MachineError, SourceError, escape, reason_of
from inheritune.model_files.copy import MAX_SIDE_BYTES, is_side_file
from inheritune.model_files.safe_path import INDEX, is_plain_name

Answer = TypeVar("Answer")

BACKOFF_S = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each retry; after the last one, the error is raised."""

TRY_LATER = {408, 429, 500, 502, 503, 504}
"""HTTP statuses of a server that is busy or broken for the moment."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")
# What a model in the cache must have to be taken as it is, offline.
NEEDED = ["config.json", "*.safetensors", "tokenizer.json"]
UNWANTED = ["original/*", "consolidated*", "*/*", "adapter_*"]
MOST_SIDE_BYTES = 4 * MAX_SIDE_BYTES
MOST_SIDE_FILES = 500
_NOT_HERE = "There is no directory of this name here."
_LIBRARIES = ("httpx", "httpcore", "huggingface_hub")  # also covers httpx2, a fork of the first
_BROKEN = {"RemoteProtocolError", "ReadError", "WriteError"}  # by name: of httpx or of httpx2
_FULL_DISK = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def is_hub_id(model: str) -> bool:
    """Tell whether a text has the form of a Hub id, such as ``"openai-community/gpt2"``."""
    return _ID.fullmatch(model) is not None and ".." not in model and "--" not in model


def is_wanted(name: str, size: int = 0) -> bool:
    """Tell whether a repository's file belongs to a model, and its name is a safe relative path.

    Weights are wanted in safetensors only: no pickle is even downloaded.
    """
    if not is_plain_name(name.removeprefix("additional_chat_templates/")):
        return False
    if name.endswith(".safetensors"):
        return not any(fnmatchcase(name, pattern) for pattern in UNWANTED)
    if name in ("config.json", INDEX):
        return True
    return is_side_file(name) and size <= MAX_SIDE_BYTES


def wanted_files(sizes: Mapping[str, int], model: str) -> set[str]:
    """Choose the files of a repository that belong to a model, by their names and sizes.

    Raises:
        SourceError: Beside weights and config they are more than any model has.
    """
    wanted = {name for name, size in sizes.items() if is_wanted(name, size)}
    sides = [name for name in wanted if not name.endswith(".safetensors")]
    total = sum(sizes[name] for name in sides)
    if total > MOST_SIDE_BYTES or len(sides) > MOST_SIDE_FILES:
        largest = max(sides, key=lambda name: sizes[name])
        raise SourceError(
            f"{model} has {len(sides):,} files beside its weights, {total:,} bytes, such as "
            f"{escape(largest)}: no model needs so much.",
            f"Get what belongs to it with `hf download {model} --local-dir DIR --include ...`.",
        )
    return wanted


def mirror_root(model: str) -> Path:
    """Return the directory of all that was downloaded of a model in parts."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "inheritune" / f"models--{model.replace('/', '--')}"


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return a model's directory in the Hub's own cache, perhaps incomplete, without any request.

    A branch stands for the commit it had when it was last downloaded.
    """
    from huggingface_hub import errors, snapshot_download

    with hub_errors(model, revision):
        try:
            # One file only: the library refuses a directory that lacks any of the wanted ones.
            return Path(
                snapshot_download(
                    model, revision=revision, local_files_only=True, allow_patterns="config.json"
                )
            )
        except errors.LocalEntryNotFoundError:
            return None


def ask_again(ask: Callable[[], Answer]) -> Answer:
    """Return what ``ask`` returns, called up to three times where the Hub is busy or hangs up.

    A server may close a kept connection just as a request is sent over it, and the Hub's library
    does not repeat every request. Where there is no connection at all, ``ask`` is called once.
    """
    for wait_s in BACKOFF_S[:2]:  # a short while only
        try:
            return ask()
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if status not in TRY_LATER and not kinds & _BROKEN:
                raise
        time.sleep(wait_s)
    return ask()


@contextmanager
def hub_errors(model: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the Hub and its libraries into SourceError and MachineError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model}, then `hf auth login`."
        raise SourceError(f"{model} is gated: {_reason(error)}", hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = f"Check the id; for a private model, `hf auth login` first. {_NOT_HERE}"
        raise SourceError(f"the Hub has no {model}: {_reason(error)}", hint) from error
    except errors.RevisionNotFoundError as error:
        hint = "Name a branch, tag or commit of the model."
        raise SourceError(f"{model} has no revision {revision}: {_reason(error)}", hint) from error
    except errors.RemoteEntryNotFoundError as error:
        hint = "Name another revision of the model."
        raise SourceError(f"{model} lacks a file: {_reason(error)}", hint) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{model} is not a Hub id: {_reason(error)}") from error
    except Exception as error:  # offline, not cached, no connection, no space
        # The HTTP library has a tree of errors of its own, and another one may replace it.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_LIBRARIES):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise SourceError(
                f"the Hub does not show {model} to this account: {_reason(error)}",
                "Check its token: `hf auth whoami`, `hf auth login`.",
            ) from error
        hint = f"Connect, or name a local model directory. {_NOT_HERE}"
        raise MachineError(f"cannot get {model} from the Hub: {_reason(error)}", hint) from error


def _reason(error: Exception) -> str:
    # The server's own message, if it sent one. A hint follows, so the sentence has to end.
    text = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = escape(lines[0] if lines else type(error).__name__, 200)
    return reason if reason.endswith((".", "!", "?", ":")) else f"{reason}."


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while the cache is written into MachineError."""
    try:
        yield
    except OSError as error:
        hint = "Set HF_HOME to a directory that can be written to."
        if error.errno in _FULL_DISK:
            hint = "Free some space, or set HF_HOME to another disk; what has arrived is kept."
        elif error.errno == errno.EFBIG:
            hint = "Set HF_HOME to a disk that takes files of the model's size, sparse ones best."
        raise MachineError(
            f"cannot write {escape(path, 300)}: {reason_of(error)}.", hint
        ) from error
