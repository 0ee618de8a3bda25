"""A model from the Hugging Face Hub, as a directory in its cache."""

import re
from pathlib import Path

from inheritune.errors import MachineError, SourceError
from inheritune.regular_file import escape

__all__ = ["download", "is_hub_id"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")
# Whole models only, in safetensors only: no pickle is even downloaded.
_WANTED = [
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
_UNWANTED = ["original/*", "consolidated*", "*/*.safetensors", "*/*.json", "*/*.py", "adapter_*"]


def is_hub_id(model: str) -> bool:
    """Whether a text has the form of a Hub id, such as ``"openai-community/gpt2"``."""
    return _ID.fullmatch(model) is not None and ".." not in model and "--" not in model


def download(model: str, revision: str | None) -> Path:
    """Download a model into the Hub's cache, or find it there.

    Args:
        model: Hub id.
        revision: Branch, tag or commit; None: the main branch.

    Returns:
        The snapshot's directory; its name is the commit.

    Raises:
        SourceError: The Hub has no such model or revision, or does not show it to this account.
        MachineError: The Hub cannot be reached, and the cache does not hold the model.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
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
    except errors.HFValidationError as error:
        raise SourceError(f"{model} is no Hub id: {_first_line(error)}") from error
    except OSError as error:  # offline, not cached, no connection, no space
        hint = "Connect, or name a local model directory."
        raise MachineError(
            f"cannot get {model} from the Hub: {_first_line(error)}", hint
        ) from error
    except Exception as error:  # the HTTP library has its own tree, and another one may come
        if type(error).__module__.split(".")[0] not in {"httpx", "httpcore", "huggingface_hub"}:
            raise
        hint = "Connect, or name a local model directory."
        raise MachineError(
            f"cannot get {model} from the Hub: {_first_line(error)}", hint
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return escape(lines[0] if lines else type(error).__name__, 200)
