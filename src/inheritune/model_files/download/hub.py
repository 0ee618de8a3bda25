"""A model from the Hugging Face Hub, as a directory in its cache."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

from inheritune.errors import MachineError, SourceError, escape

__all__ = ["UNWANTED", "WANTED", "cached_snapshot", "hub_errors", "is_hub_id", "is_wanted"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")
# Whole models only, in safetensors only: no pickle is even downloaded.
WANTED = [
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.spm", "*.bpe", "*.py"),
    *(
        "merges.txt",
        "vocab*.txt",
        "LICEN[CS]E*",
        "License*",
        "COPYING*",
        "[Nn][Oo][Tt][Ii][Cc][Ee]*",
    ),
    "USE_POLICY*",
]
UNWANTED = ["original/*", "consolidated*", "*/*.safetensors", "*/*.json", "*/*.py", "adapter_*"]
_LIBRARIES = ("httpx", "httpcore", "huggingface_hub")  # httpx2 is another name of the first


def is_hub_id(model: str) -> bool:
    """Whether a text has the form of a Hub id, such as ``"openai-community/gpt2"``."""
    return _ID.fullmatch(model) is not None and ".." not in model and "--" not in model


def is_wanted(name: str) -> bool:
    """Whether a file of a repository belongs to a model, and its name to a place inside of it."""
    plain = name.removeprefix("additional_chat_templates/")
    if PurePosixPath(plain).name != plain or PureWindowsPath(plain).name != plain:
        return False
    if plain.startswith(".") or not plain.isprintable() or any(mark in plain for mark in ':"'):
        return False
    if plain != name and not name.endswith(".jinja"):
        return False
    if any(fnmatchcase(name, pattern) for pattern in UNWANTED):
        return False
    return any(fnmatchcase(name, pattern) for pattern in WANTED)


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """The directory of a model in the Hub's cache, as far as it is there; asks for nothing.

    Args:
        model: Hub id.
        revision: Branch, tag or commit; a branch means what it meant when it was last downloaded.
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


@contextmanager
def hub_errors(model: str, revision: str | None) -> Iterator[None]:
    """Say in our own errors what the Hub and the libraries that ask it say in theirs.

    Args:
        model: Hub id.
        revision: What is asked for, for messages.

    Raises:
        SourceError: The Hub has no such thing, or does not show it to this account.
        MachineError: The Hub cannot be reached, or fails.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model}, then `hf auth login`."
        raise SourceError(f"{model} is gated: {_first_line(error)}", hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "Check the id; for a private model, `hf auth login` first."
        raise SourceError(f"the Hub has no {model}: {_first_line(error)}", hint) from error
    except errors.RevisionNotFoundError as error:
        hint = "Name a branch, tag or commit of the model."
        raise SourceError(
            f"{model} has no revision {revision}: {_first_line(error)}", hint
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        hint = "Name another revision of the model."
        raise SourceError(f"{model} lacks a file: {_first_line(error)}", hint) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{model} is no Hub id: {_first_line(error)}") from error
    except Exception as error:  # offline, not cached, no connection, no space
        # The HTTP library has its own tree, and another one may come.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_LIBRARIES):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise SourceError(
                f"the Hub does not show {model} to this account: {_first_line(error)}",
                "Check its token: `hf auth whoami`, `hf auth login`.",
            ) from error
        hint = "Connect, or name a local model directory."
        raise MachineError(
            f"cannot get {model} from the Hub: {_first_line(error)}", hint
        ) from error


def _first_line(error: Exception) -> str:
    said = getattr(error, "server_message", None) or str(error)  # the Hub's own words, if any
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = escape(lines[0] if lines else type(error).__name__, 200)
    return first if first.endswith((".", "!", "?", ":")) else f"{first}."  # a hint follows
