"""A target to the Hugging Face Hub: proven first, weights before all else, the card last."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import MachineError, SourceError, escape, first_line
from inheritune.model_files.card import join_front_matter, split_front_matter
from inheritune.model_files.directory import open_model
from inheritune.model_files.safe_path import safe_file
from inheritune.publishing.licences import carried_licence, refuse_licence
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.reading import read_regular_file
from inheritune.verification.model import verify_model

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

__all__ = ["Parcel", "pack", "push"]

CARD = "README.md"
_MOST_CARD_BYTES = 10_000_000
_MESSAGES = ("Weights", "Config, tokenizer and records", "Card")
# Changed without changing the model: written again by every `report`.
_MAY_DIFFER = (CARD, "figures/")
_MADE_BY_THE_HUB = {".gitattributes"}
_ENDINGS = (
    *(".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".spm", ".txt", ".bpe", ".py"),
    *(".md", ".png"),
)
_LICENCE_NAMES = ("LICEN", "COPYING", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class Parcel:
    """What goes to the Hub.

    Attributes:
        directory: The target.
        groups: Names of files, in the order of the commits: weights, all else, card.
        card: Text of the card as it is sent.
        licence: Its licence.
    """

    directory: Path
    groups: Sequence[Sequence[str]]
    card: str
    licence: str

    @property
    def files(self) -> list[dict[str, Any]]:
        """Names and sizes in bytes, in the order in which they are sent."""
        return [{"path": n, "bytes": self.size(n)} for group in self.groups for n in group]

    def size(self, name: str) -> int:
        """Bytes of one file as it is sent."""
        return len(self.card.encode()) if name == CARD else (self.directory / name).stat().st_size


def pack(
    path: Path, licence: str | None = None, public: bool = False, repo_id: str | None = None
) -> Parcel:
    """Look at a target, prove it, and choose what is sent; changes nothing.

    Args:
        path: A target, or a run that has one.
        licence: States the licence, as the Hub names it, where the reference's card does not.
        public: Whether everybody will see it.
        repo_id: Where it shall go: its name is looked at, and nobody is asked.

    Raises:
        SourceError: It is no target, not sound, or not what its record says.
        RecipeError: Its licence is unknown, or does not allow this.
        MachineError: The name of the repository is not possible.
    """
    if repo_id is not None:
        _refuse_name(repo_id)
    directory = path / "target" if (path / "run.json").is_file() else path
    if not (directory / "config.json").is_file():
        raise SourceError(
            f"there is no target in {escape(path)}.", "Name a finished run, or a model directory."
        )
    names = _names(directory)
    if CARD not in names:
        raise SourceError(
            f"{escape(directory)} has no {CARD}.",
            f"Write it: inheritune report {escape(path)}."
            if directory != path
            else "Write the target again with `inheritune inherit`, or add one.",
        )
    for _ in verify_model(open_model(str(directory))):
        pass
    fields, body = split_front_matter(_read_card(directory))
    found = carried_licence(fields)
    stated = licence or found.licence
    refuse_licence(found, stated, repeated=licence is not None, public=public)
    assert stated is not None  # refused otherwise
    fields |= found.fields
    if licence is not None and licence != fields.get("license"):
        for key in ("license_name", "license_link"):
            fields.pop(key, None)
        fields["license"] = licence
    weights = [name for name in names if name.endswith(".safetensors")]
    rest = [name for name in names if name not in weights and name != CARD]
    return Parcel(directory, (weights, rest, [CARD]), join_front_matter(fields, body), stated)


def push(
    parcel: Parcel, repo_id: str, public: bool = False, on_progress: Listener = silent
) -> dict[str, Any]:
    """Send a parcel to a repository of the Hub, which is made where it is missing.

    Three commits: weights, all else, card. One that was broken off is continued by the same call;
    what has arrived is not sent again. The Hub's own library does the sending.

    Args:
        parcel: What `pack` has chosen.
        repo_id: ``owner/name``.
        public: Whether everybody sees it; only for a repository that is made now.
        on_progress: Told of the bytes.

    Returns:
        ``repo``, ``url``, ``private``, ``commit``, ``licence`` and ``files``; the commit is None
        where all of it was there.

    Raises:
        MachineError: There is no token that may write, the name is not possible, the repository
            holds something else, or the connection broke.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # ours is shown instead
    _refuse_name(repo_id)
    api = HfApi(endpoint=constants.ENDPOINT)
    with _hub(repo_id):
        _refuse_reader(api)
        repo = api.create_repo(repo_id, private=not public, exist_ok=True).repo_id
        private = bool(api.repo_info(repo).private)
        _refuse_visibility(repo, private, public)
        there = _already_there(api, repo, parcel)
        total = sum(file["bytes"] for file in parcel.files)
        sent = sum(parcel.size(name) for name in there)
        commit = None
        for message, group in zip(_MESSAGES, parcel.groups, strict=True):
            if names := [name for name in group if name not in there]:
                on_progress(Progress("push", message=f"{message.lower()}: {len(names)} files"))
                operations = []
                for operation in _uploaded(api, repo, parcel, names):
                    operations.append(operation)
                    sent += parcel.size(operation.path_in_repo)
                    on_progress(Progress("push", sent, total, "bytes"))
                made = api.create_commit(repo, operations, commit_message=message)
                commit = str(made.oid)
    return {
        "repo": repo,
        "url": f"{constants.ENDPOINT}/{repo}",
        "private": private,
        "commit": commit,
        "licence": parcel.licence,
        "files": parcel.files,
    }


def _names(directory: Path) -> list[str]:
    """Files of a model directory that are sent, in order; no pickle, nothing hidden."""
    found = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or any(part.startswith(".") for part in Path(name).parts):
            continue
        if name.endswith(_ENDINGS) or path.name.upper().startswith(_LICENCE_NAMES):
            safe_file(directory, name)
            found.append(name)
    return found


def _read_card(directory: Path) -> str:
    try:
        return read_regular_file(directory / CARD, _MOST_CARD_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SourceError(f"cannot read {escape(directory / CARD)}: {why}.") from error


def _refuse_name(repo_id: str) -> None:
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with _hub(repo_id):
        validate_repo_id(repo_id)


def _refuse_reader(api: "HfApi") -> None:
    token = api.whoami().get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise MachineError(
            "the Hub's token of this machine may only read.",
            "Log in with one that may write: hf auth login.",
        )


def _refuse_visibility(repo: str, private: bool, public: bool) -> None:
    if public == private:
        is_, asked = ("private", "--public") if private else ("public", "no --public")
        raise MachineError(
            f"{repo} is there already and {is_}, which {asked} does not fit.",
            "Change it in its settings on the Hub, or add --public."
            if public is False
            else "Change it in its settings on the Hub, or leave --public out.",
        )


def _already_there(api: "HfApi", repo: str, parcel: Parcel) -> set[str]:
    """Names that need no sending; only what this very target has left there may be gone on with."""
    from huggingface_hub.hf_api import RepoFile

    ours = {name for group in parcel.groups for name in group}
    same = set()
    for entry in api.list_repo_tree(repo, recursive=True):
        if not isinstance(entry, RepoFile) or entry.path in _MADE_BY_THE_HUB:
            continue
        large = None if entry.lfs is None else entry.lfs.sha256
        if entry.path in ours and _is_same(parcel, entry.path, entry.blob_id, large):
            same.add(entry.path)
        elif not entry.path.startswith(_MAY_DIFFER):
            raise MachineError(
                f"{repo} holds something else already, such as {escape(entry.path)}.",
                "Name another repository with --repo-id; an empty one, or a new one.",
            )
    return same


def _is_same(parcel: Parcel, name: str, blob: str, sha256: str | None) -> bool:
    size = parcel.size(name)
    digest = (
        hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    )
    if name == CARD:
        digest.update(parcel.card.encode())
    else:
        with (parcel.directory / name).open("rb") as file:
            while data := file.read(2**20):
                digest.update(data)
    return digest.hexdigest() == (sha256 or blob)


def _uploaded(
    api: "HfApi", repo: str, parcel: Parcel, names: Sequence[str]
) -> Iterator["CommitOperationAdd"]:
    """Files ready to be committed; a large one stays there though the next one does not arrive."""
    from huggingface_hub import CommitOperationAdd

    for name in names:
        content = parcel.card.encode() if name == CARD else str(parcel.directory / name)
        operation = CommitOperationAdd(name, content)
        api.preupload_lfs_files(repo, [operation], free_memory=False)
        yield operation


@contextmanager
def _hub(repo_id: str) -> Iterator[None]:
    """Say in our own errors what the Hub and its library say in theirs."""
    from huggingface_hub import errors

    name = escape(repo_id)
    try:
        yield
    except MachineError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise MachineError(
            "there is no token of the Hub on this machine.", "Log in: hf auth login."
        ) from error
    except errors.HFValidationError as error:
        raise MachineError(
            f"{name} is no name of a repository: {first_line(error)}", "Write it as owner/name."
        ) from error
    except errors.HfHubHTTPError as error:
        said = escape(getattr(error, "server_message", None) or first_line(error), 200)
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise MachineError(
                f"the Hub does not let this account write to {name}: {said}",
                "Log in with a token that may write there: hf auth login.",
            ) from error
        raise MachineError(f"the Hub refuses {name}: {said}", _AGAIN) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _broken(name, error) from error
    except Exception as error:  # the HTTP library has a tree of its own
        if not type(error).__module__.startswith(("httpx", "httpcore", "hf_xet")):
            raise
        raise _broken(name, error) from error


_AGAIN = "The same command goes on; what has arrived is not sent again."


def _broken(name: str, error: Exception) -> MachineError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said = first_line(cause if isinstance(cause, Exception) else error)
    return MachineError(f"the way to {name} on the Hub broke: {said}.", _AGAIN)
