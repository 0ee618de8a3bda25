"""Send a target to the Hugging Face Hub: verified first, then weights, other files, the card."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import MachineError, RecipeError, SourceError, escape, first_line
from inheritune.model_files.card import join_front_matter, split_front_matter
from inheritune.model_files.copy import is_side_file
from inheritune.model_files.directory import open_model
from inheritune.model_files.safe_path import safe_file
from inheritune.publishing.card import with_path
from inheritune.publishing.licences import carried_licence, refuse_licence
from inheritune.run_directory import Run
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.reading import read_regular_file
from inheritune.verification.model import verify_model

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


CARD = "README.md"
_MOST_CARD_BYTES = 10_000_000
_MESSAGES = ("Weights", "Config, tokenizer and records", "Card")
# `report` writes these again, without changing the model.
_MAY_DIFFER = (CARD, "figures/")
_MADE_BY_THE_HUB = {".gitattributes"}
# Weights, records, the card and its pictures; beside these, whatever is a side file of a model.
_ENDINGS = (".safetensors", ".json", ".md", ".png")


@dataclass(frozen=True)
class Parcel:
    """The files to send."""

    directory: Path  # the target
    groups: Sequence[Sequence[str]]  # file names of each commit: weights, all else, card
    card: str  # text of the card
    licence: str  # licence on the card

    @property
    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of each file, in the order of sending."""
        return [{"path": n, "bytes": self.size(n)} for group in self.groups for n in group]

    def size(self, name: str) -> int:
        """Bytes of one file."""
        return len(self.card.encode()) if name == CARD else (self.directory / name).stat().st_size


def pack(
    path: Path, licence: str | None = None, public: bool = False, repo_id: str | None = None
) -> Parcel:
    """Verify a target and choose the files to send; nothing is changed or sent.

    Args:
        path: A target, or a run that has one.
        licence: Licence by its name on the Hub; None: that of the reference's card.
        repo_id: Repository; only the form of its name is checked.

    Raises:
        SourceError: There is no target, or it differs from its record.
        DataError: Something in the run leads out of it.
        RecipeError: Its licence is unknown, or does not allow this.
        MachineError: The name of the repository is impossible.
    """
    if repo_id is not None:
        _refuse_name(repo_id)
    directory = Run.open(path).target if (path / "run.json").is_file() else path
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
    carried = carried_licence(fields)
    stated = licence or carried.licence
    refuse_licence(carried, stated, repeated=licence is not None, public=public)
    assert stated is not None  # refused otherwise
    fields |= carried.fields
    if licence is not None and licence != fields.get("license"):
        for key in ("license_name", "license_link"):
            fields.pop(key, None)
        fields["license"] = licence
    body = body if repo_id is None else with_path(body, repo_id)
    weights = [name for name in names if name.endswith(".safetensors")]
    others = [name for name in names if name not in weights and name != CARD]
    return Parcel(directory, (weights, others, [CARD]), join_front_matter(fields, body), stated)


def push(
    parcel: Parcel, repo_id: str, public: bool = False, on_progress: Listener = silent
) -> dict[str, Any]:
    """Send a parcel to a repository of the Hub, which is created if it is missing.

    There are three commits: weights, all else, card. After an interruption, the same call sends
    what is still missing.

    Args:
        repo_id: ``owner/name``.
        public: Create a public repository.

    Returns:
        ``repo``, ``url``, ``private``, ``commit``, ``licence`` and ``files``; the commit is None
        if everything was there already.

    Raises:
        MachineError: There is no token that may write, the name is impossible, the repository
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
        present = _present_files(api, repo, parcel)
        total = sum(file["bytes"] for file in parcel.files)
        sent = sum(parcel.size(name) for name in present)
        commit = None
        for message, group in zip(_MESSAGES, parcel.groups, strict=True):
            if names := [name for name in group if name not in present]:
                on_progress(Progress("push", message=f"{message.lower()}: {len(names)} files"))
                operations = []
                for operation in _uploaded(api, repo, parcel, names):
                    operations.append(operation)
                    sent += parcel.size(operation.path_in_repo)
                    on_progress(Progress("push", sent, total, "bytes"))
                info = api.create_commit(repo, operations, commit_message=message)
                commit = str(info.oid)
    return {
        "repo": repo,
        "url": f"{constants.ENDPOINT}/{repo}",
        "private": private,
        "commit": commit,
        "licence": parcel.licence,
        "files": parcel.files,
    }


def _names(directory: Path) -> list[str]:
    """List the files of a model directory to send; no pickles, nothing hidden."""
    names = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or any(part.startswith(".") for part in Path(name).parts):
            continue
        if name.endswith(_ENDINGS) or is_side_file(name):
            safe_file(directory, name)
            names.append(name)
    return names


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
            "this machine's token of the Hub may only read.",
            "Log in with one that may write: hf auth login.",
        )


def _refuse_visibility(repo: str, private: bool, public: bool) -> None:
    if public and private:
        raise MachineError(
            f"{repo} exists already and is private, but --public was given.",
            "Change it in its settings on the Hub, or leave --public out.",
        )
    if not public and not private:
        raise MachineError(
            f"{repo} exists already and is public, but --public was not given.",
            "Change it in its settings on the Hub, or add --public.",
        )


def _present_files(api: "HfApi", repo: str, parcel: Parcel) -> set[str]:
    """List the files that the repository has already; refuse one that holds something else."""
    from huggingface_hub.hf_api import RepoFile

    names = {name for group in parcel.groups for name in group}
    present = set()
    for entry in api.list_repo_tree(repo, recursive=True):
        if not isinstance(entry, RepoFile) or entry.path in _MADE_BY_THE_HUB:
            continue
        sha256 = None if entry.lfs is None else entry.lfs.sha256
        if entry.path in names and _is_same(parcel, entry.path, entry.blob_id, sha256):
            present.add(entry.path)
        elif not entry.path.startswith(_MAY_DIFFER):
            raise MachineError(
                f"{repo} already holds something else, such as {escape(entry.path)}.",
                "Name a new or empty repository with --repo-id.",
            )
    return present


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
    """Upload files for a commit, one by one, so that each is kept if a later one fails."""
    from huggingface_hub import CommitOperationAdd

    for name in names:
        content = parcel.card.encode() if name == CARD else str(parcel.directory / name)
        operation = CommitOperationAdd(name, content)
        api.preupload_lfs_files(repo, [operation], free_memory=False)
        yield operation


@contextmanager
def _hub(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub and its library into our own."""
    from huggingface_hub import errors

    name = escape(repo_id)
    try:
        yield
    except MachineError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise MachineError(
            "this machine has no token of the Hub.", "Log in: hf auth login."
        ) from error
    except errors.HFValidationError as error:
        raise RecipeError(
            f"{name} is no repository name: {first_line(error)}", "Write it as owner/name."
        ) from error
    except errors.HfHubHTTPError as error:
        reason = escape(getattr(error, "server_message", None) or first_line(error), 200)
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise MachineError(
                f"the Hub does not let this account write to {name}: {reason}",
                "Log in with a token that may write there: hf auth login.",
            ) from error
        raise MachineError(f"the Hub refuses {name}: {reason}", _AGAIN) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _broken(name, error) from error
    except Exception as error:  # the HTTP library has a tree of its own
        if not type(error).__module__.startswith(("httpx", "httpcore", "hf_xet")):
            raise
        raise _broken(name, error) from error


_AGAIN = "Run the same command again: it sends what is still missing."


def _broken(name: str, error: Exception) -> MachineError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = first_line(cause if isinstance(cause, Exception) else error)
    return MachineError(f"the connection to {name} on the Hub broke: {reason}.", _AGAIN)
