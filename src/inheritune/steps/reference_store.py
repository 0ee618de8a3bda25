"""A reference that one run has trained, kept where runs that want the same one find it.

The reference at the commit that a run began with, wherever its branch has moved meanwhile.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inheritune.data.tokens import canonical_digest
from inheritune.errors import DataError, SourceError, escape
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.run_directory import Run
from inheritune.system.files import (
    locked,
    new_directory,
    sync_file,
    write_json,
)
from inheritune.system.strict_json import read_json

__all__ = ["is_kept", "keep", "kept_path", "only_trainer", "open_pinned", "pinned_commit"]

_FORMAT = 1
_RECORD = "made_from.json"  # beside the model's files


def kept_path(folder: Path, name: str, made_from: Mapping[str, Any]) -> Path:
    """Where a reference is kept, or would be.

    Args:
        folder: Of all that are kept.
        name: Begins its directory's name.
        made_from: All that decides its weights, as JSON values; a digest of it ends the name.
    """
    return folder / f"{name}-{canonical_digest(made_from)[:8]}"


def is_kept(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a reference is there.

    Args:
        path: See `kept_path`.
        made_from: As for `kept_path`.

    Raises:
        DataError: There is something else.
    """
    if not path.exists():
        return False
    record = read_json(path / _RECORD)
    if not isinstance(record, dict) or record.get("made_from") != made_from:
        raise DataError(
            f"{escape(path)} does not hold the reference that this recipe asks for.",
            "Name another directory in reference.train.keep_in.",
        )
    return True


def keep(model: Path, path: Path, made_from: Mapping[str, Any], run: str) -> None:
    """Keep a copy of a trained reference; it is there completely or not at all.

    Args:
        model: Its directory, with ``training.json``.
        path: See `kept_path`; nothing is there.
        made_from: As for `kept_path`.
        run: Name of the run that trained it.

    Raises:
        MachineError: The disk is full, read-only or broken.
    """
    with new_directory(path) as staging:
        for source in sorted(model.rglob("*")):
            copy = staging / source.relative_to(model)
            if source.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(source, copy)
                sync_file(copy)
        record = {"format": _FORMAT, "run": run, "made_from": dict(made_from)}
        write_json(staging / _RECORD, record)


@contextmanager
def only_trainer(path: Path) -> Iterator[None]:
    """Be the one run that trains a reference; the system frees this when the process ends.

    Args:
        path: Where it will be kept.

    Raises:
        MachineError: Another run trains it; its process and machine are named.
    """
    with locked(
        path.with_name(f".{path.name}.lock"),
        f"another run trains this reference for {escape(path)}",
        "Wait for it to end: it is then taken from there.",
    ):
        yield


_PIN_FORMAT = 1
_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_pinned(
    run: Run,
    model: str,
    revision: str | None,
    *,
    whole: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> ModelDirectory:
    """Open a run's reference: a Hub id at the commit that the run's directory says.

    Where it says none, the commit that is opened now is written there. Of `plan` and `run`, whoever
    is first decides.

    Args:
        run: Its directory exists.
        model: Hub id, model directory, or ``embedded:demo``.
        revision: Branch, tag or commit of a Hub id, as the recipe has it.
        whole: See `source.open_model`.
        stop: See `source.open_model`.

    Raises:
        SourceError: The commit is not to be had any more, or the directory is not sound.
        MachineError: The Hub cannot be reached.
        DataError: The file with the commit is broken.
        Interrupted: ``stop`` said so.
    """
    commit = pinned_commit(run, model, revision)
    if commit is None:
        opened = open_model(model, revision, whole=whole, stop=stop)
        if opened.revision is not None:
            asked = {"model": model, "revision": revision}
            write_json(run.pin, {"format": _PIN_FORMAT, **asked, "commit": opened.revision})
        return opened
    hint = f"To begin anew with what {revision or 'main'} means now, give the run another name."
    try:
        opened = open_model(model, commit, whole=whole, stop=stop)
    except SourceError as error:
        raise SourceError(
            f"this run began with commit {commit[:12]} of {model}, and: {error.message}", hint
        ) from error
    if opened.revision != commit:
        raise SourceError(
            f"this run began with commit {commit[:12]} of {model} on the Hub; now {opened.path} "
            "is in its place.",
            hint,
        )
    return opened


def pinned_commit(run: Run, model: str, revision: str | None) -> str | None:
    """The commit that a run's directory says for its reference.

    Args:
        run: Its directory need not exist.
        model: As the recipe has it.
        revision: As the recipe has it; for another one than before, nothing is pinned.

    Raises:
        DataError: The file is broken.
    """
    if not run.pin.exists():
        return None
    found: Any = read_json(run.pin)
    known = isinstance(found, dict) and found.get("format") == _PIN_FORMAT
    commit = found.get("commit") if known else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise DataError(
            f"{run.pin} does not say which commit of {model} the run began with.",
            "Restore it from a copy, or give the run another name.",
        )
    return commit if (found.get("model"), found.get("revision")) == (model, revision) else None
